// A server on the official go-sdk, and the driver of its client.
//
//	go_sdk PORT [SECONDS]    SECONDS: after how long without a request the SDK ends a session
//	go_sdk client            commands on standard input; see client.go
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// afterTheAnswer is long enough for a message to find only the listening stream open.
const afterTheAnswer = 100 * time.Millisecond

var (
	ledger = os.Getenv("INTEROP_LEDGER")
	mutex  sync.Mutex
	calls  = map[string]int{}
)

func record(key string) error {
	file, err := os.OpenFile(ledger, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = fmt.Fprintln(file, key)
	return err
}

// grown tells whether an earlier life was told to grow: the list of tools then is another one.
func grown() bool {
	lines, _ := os.ReadFile(ledger)
	return strings.Contains("\n"+string(lines), "\ngrow\n")
}

type arguments struct {
	Text    string  `json:"text,omitempty"`
	Key     string  `json:"key,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Level   string  `json:"level,omitempty"`
	URI     string  `json:"uri,omitempty"`
}

type run func(ctx context.Context, session *mcp.ServerSession, given arguments) (string, error)

func echo(_ context.Context, _ *mcp.ServerSession, given arguments) (string, error) {
	return given.Text, nil
}

func addToLedger(_ context.Context, _ *mcp.ServerSession, given arguments) (string, error) {
	return given.Key, record(given.Key)
}

func slow(ctx context.Context, session *mcp.ServerSession, given arguments) (string, error) {
	key, err := addToLedger(ctx, session, given)
	select {
	case <-time.After(time.Duration(given.Seconds * float64(time.Second))):
	case <-ctx.Done():
	}
	return key, err
}

func count(_ context.Context, session *mcp.ServerSession, _ arguments) (string, error) {
	mutex.Lock()
	defer mutex.Unlock()
	calls[session.ID()]++
	return strconv.Itoa(calls[session.ID()]), nil
}

// logging logs at the level asked for, on the session's listening stream.
func logging(_ context.Context, session *mcp.ServerSession, given arguments) (string, error) {
	time.AfterFunc(afterTheAnswer, func() {
		said := &mcp.LoggingMessageParams{Level: mcp.LoggingLevel(given.Level), Logger: "interop", Data: "logged"}
		if err := session.Log(context.Background(), said); err != nil {
			log.Printf("not logged: %v", err)
		}
	})
	return "logged", nil
}

// touching tells every session that has subscribed to it of a change.
func touching(served *mcp.Server) run {
	return func(_ context.Context, _ *mcp.ServerSession, given arguments) (string, error) {
		time.AfterFunc(afterTheAnswer, func() {
			_ = served.ResourceUpdated(context.Background(), &mcp.ResourceUpdatedNotificationParams{URI: given.URI})
		})
		return "touched", nil
	}
}

func addTools(served *mcp.Server) {
	add := func(name string, readOnly bool, body run) {
		tool := &mcp.Tool{Name: name, Annotations: &mcp.ToolAnnotations{ReadOnlyHint: readOnly}}
		mcp.AddTool(served, tool, func(ctx context.Context, call *mcp.CallToolRequest, given arguments) (*mcp.CallToolResult, any, error) {
			text, err := body(ctx, call.Session, given)
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil, err
		})
	}
	add("echo", true, echo)
	add("add_to_ledger", false, addToLedger)
	add("slow", false, slow)
	add("slow_read", true, slow)
	add("count", true, count)
	add("log", true, logging)
	add("touch", true, touching(served))
	if grown() {
		add("grown", true, echo)
	}
}

func main() {
	if os.Args[1] == "client" {
		drive()
		return
	}
	accept := func(context.Context, *mcp.SubscribeRequest) error { return nil }
	drop := func(context.Context, *mcp.UnsubscribeRequest) error { return nil }
	served := mcp.NewServer(&mcp.Implementation{Name: "interop", Version: "1.0.0"}, &mcp.ServerOptions{
		SubscribeHandler:   accept,
		UnsubscribeHandler: drop,
		InitializedHandler: func(context.Context, *mcp.InitializedRequest) { log.Print("a session begins") },
	})
	addTools(served)
	served.AddResource(&mcp.Resource{URI: "fake://one", Name: "one"}, func(context.Context, *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: "fake://one", Text: "the first"}}}, nil
	})
	options := &mcp.StreamableHTTPOptions{}
	if len(os.Args) > 2 {
		seconds, err := strconv.ParseFloat(os.Args[2], 64)
		if err != nil {
			log.Fatal(err)
		}
		options.SessionTimeout = time.Duration(seconds * float64(time.Second))
	}
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return served }, options)
	http.Handle("/mcp", handler)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
