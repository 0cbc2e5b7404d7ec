// A server on mcp-go's Streamable HTTP transport.
//
//	mcp_go stateful|default PORT    default: the SDK's own session manager, which takes any well-formed id
//
// One source for two versions: go.mod and v0_43.mod, which is built with the tag v0_43.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
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

func sessionOf(ctx context.Context) string { return server.ClientSessionFromContext(ctx).SessionID() }

type run func(ctx context.Context, call mcp.CallToolRequest) (string, error)

func echo(_ context.Context, call mcp.CallToolRequest) (string, error) {
	return call.GetString("text", ""), nil
}

func addToLedger(_ context.Context, call mcp.CallToolRequest) (string, error) {
	key := call.GetString("key", "")
	return key, record(key)
}

func slow(ctx context.Context, call mcp.CallToolRequest) (string, error) {
	key, err := addToLedger(ctx, call)
	select {
	case <-time.After(time.Duration(call.GetFloat("seconds", 0) * float64(time.Second))):
	case <-ctx.Done():
	}
	return key, err
}

func count(ctx context.Context, _ mcp.CallToolRequest) (string, error) {
	mutex.Lock()
	defer mutex.Unlock()
	calls[sessionOf(ctx)]++
	return strconv.Itoa(calls[sessionOf(ctx)]), nil
}

// logging logs at the level asked for, on the session's listening stream.
func logging(served *server.MCPServer) run {
	return func(ctx context.Context, call mcp.CallToolRequest) (string, error) {
		level, session := mcp.LoggingLevel(call.GetString("level", "")), sessionOf(ctx)
		time.AfterFunc(afterTheAnswer, func() {
			said := mcp.NewLoggingMessageNotification(level, "interop", "logged")
			if err := served.SendLogMessageToSpecificClient(session, said); err != nil {
				log.Printf("not logged: %v", err)
			}
		})
		return "logged", nil
	}
}

// touch tells the session's listening stream of a change, if the session has subscribed to it.
func touch(served *server.MCPServer) run {
	return func(ctx context.Context, call mcp.CallToolRequest) (string, error) {
		uri, session := call.GetString("uri", ""), sessionOf(ctx)
		if !subscribed(session, uri) {
			return "nobody listens", nil
		}
		time.AfterFunc(afterTheAnswer, func() {
			_ = served.SendNotificationToSpecificClient(session, "notifications/resources/updated", map[string]any{"uri": uri})
		})
		return "touched", nil
	}
}

func addTools(served *server.MCPServer) {
	add := func(name string, body run, options ...mcp.ToolOption) {
		served.AddTool(mcp.NewTool(name, options...), func(ctx context.Context, call mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			text, err := body(ctx, call)
			if err != nil {
				return nil, err
			}
			return mcp.NewToolResultText(text), nil
		})
	}
	readOnly := mcp.WithReadOnlyHintAnnotation(true)
	add("echo", echo, readOnly, mcp.WithString("text"))
	add("add_to_ledger", addToLedger, mcp.WithString("key"))
	add("slow", slow, mcp.WithNumber("seconds"), mcp.WithString("key"))
	add("slow_read", slow, readOnly, mcp.WithNumber("seconds"), mcp.WithString("key"))
	add("count", count, readOnly)
	add("log", logging(served), readOnly, mcp.WithString("level"))
	add("touch", touch(served), readOnly, mcp.WithString("uri"))
	if grown() {
		add("grown", echo, readOnly, mcp.WithString("text"))
	}
}

func main() {
	options := append(subscriptions(),
		server.WithToolCapabilities(true), server.WithLogging(), server.WithResourceCapabilities(true, true))
	served := server.NewMCPServer("interop", "1.0.0", options...)
	addTools(served)
	resource := mcp.NewResource("fake://one", "one")
	served.AddResource(resource, func(context.Context, mcp.ReadResourceRequest) ([]mcp.ResourceContents, error) {
		return []mcp.ResourceContents{mcp.TextResourceContents{URI: "fake://one", Text: "the first"}}, nil
	})
	var transport []server.StreamableHTTPOption
	if os.Args[1] == "stateful" {
		transport = append(transport, server.WithStateful(true))
	}
	log.Fatal(server.NewStreamableHTTPServer(served, transport...).Start("127.0.0.1:" + os.Args[2]))
}
