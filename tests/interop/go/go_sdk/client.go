// The driver of the SDK's client: one JSON command a line in, one JSON answer a line out, in any order.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type command struct {
	ID        int            `json:"id"`
	Op        string         `json:"op"`
	Name      string         `json:"name"`
	Timeout   float64        `json:"timeout"`
	URL       string         `json:"url"`
	URI       string         `json:"uri"`
	Level     string         `json:"level"`
	Tool      string         `json:"tool"`
	Arguments map[string]any `json:"arguments"`
}

type answer struct {
	ID        int      `json:"id"`
	Kind      string   `json:"kind"`
	Text      string   `json:"text"`
	Seconds   float64  `json:"seconds"`
	SessionID *string  `json:"session_id"`
	SeenIDs   []string `json:"seen_ids"`
}

type notification struct {
	Method string `json:"method"`
	Params any    `json:"params"`
}

// held is one connection, and what has come on it.
type held struct {
	session *mcp.ClientSession
	mutex   sync.Mutex
	seen    []string
	heard   []notification
}

func (one *held) hears(method string, params any) {
	one.mutex.Lock()
	defer one.mutex.Unlock()
	one.heard = append(one.heard, notification{method, params})
}

// RoundTrip remembers the session ID of every successful answer.
func (one *held) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	id := response.Header.Get("Mcp-Session-Id")
	one.mutex.Lock()
	defer one.mutex.Unlock()
	if id != "" && response.StatusCode < 300 && !slices.Contains(one.seen, id) {
		one.seen = append(one.seen, id)
	}
	return response, nil
}

func (one *held) connect(ctx context.Context, url string) error {
	client := mcp.NewClient(&mcp.Implementation{Name: "interop-go", Version: "1.0.0"}, &mcp.ClientOptions{
		LoggingMessageHandler: func(_ context.Context, said *mcp.LoggingMessageRequest) {
			one.hears("notifications/message", said.Params)
		},
		ResourceUpdatedHandler: func(_ context.Context, said *mcp.ResourceUpdatedNotificationRequest) {
			one.hears("notifications/resources/updated", said.Params)
		},
	})
	transport := &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: one}}
	session, err := client.Connect(ctx, transport, nil)
	one.session = session
	return err
}

func (one *held) call(ctx context.Context, given command) (string, string, error) {
	result, err := one.session.CallTool(ctx, &mcp.CallToolParams{Name: given.Tool, Arguments: given.Arguments})
	if err != nil {
		return "", "", err
	}
	var text strings.Builder
	for _, part := range result.Content {
		if said, ok := part.(*mcp.TextContent); ok {
			text.WriteString(said.Text)
		}
	}
	if result.IsError {
		return "tool_error", text.String(), nil
	}
	return "result", text.String(), nil
}

func (one *held) tools(ctx context.Context) (string, error) {
	listed, err := one.session.ListTools(ctx, nil)
	if err != nil {
		return "", err
	}
	names := []string{}
	for _, tool := range listed.Tools {
		names = append(names, tool.Name)
	}
	return strings.Join(names, " "), nil
}

func (one *held) said() (string, error) {
	one.mutex.Lock()
	defer one.mutex.Unlock()
	text, err := json.Marshal(append([]notification{}, one.heard...))
	return string(text), err
}

// do carries one command out; the kind of what became of it, and a text.
func (one *held) do(ctx context.Context, given command) (kind string, text string, err error) {
	kind = "result"
	switch given.Op {
	case "connect":
		// The session outlives the command: its time-out is not the session's.
		err = one.connect(context.WithoutCancel(ctx), given.URL)
	case "tools":
		text, err = one.tools(ctx)
	case "call":
		return one.call(ctx, given)
	case "subscribe":
		err = one.session.Subscribe(ctx, &mcp.SubscribeParams{URI: given.URI})
	case "level":
		err = one.session.SetLoggingLevel(ctx, &mcp.SetLoggingLevelParams{Level: mcp.LoggingLevel(given.Level)})
	case "heard":
		text, err = one.said()
	case "close":
		err = one.session.Close()
	default:
		err = fmt.Errorf("there is no %q here", given.Op)
	}
	return kind, text, err
}

func (one *held) answered(given command) answer {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(given.Timeout*float64(time.Second)))
	defer cancel()
	kind, text, err := one.do(ctx, given)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		kind = "timeout"
	case errors.Is(err, mcp.ErrConnectionClosed):
		kind, text = "dead", err.Error()
	case err != nil:
		kind, text = "error", err.Error()
	}
	one.mutex.Lock()
	defer one.mutex.Unlock()
	said := answer{ID: given.ID, Kind: kind, Text: text, Seconds: time.Since(began).Seconds(), SeenIDs: append([]string{}, one.seen...)}
	if len(one.seen) > 0 {
		said.SessionID = &one.seen[0]
	}
	return said
}

// drive serves commands until the end of the input.
func drive() {
	connections := map[string]*held{}
	var writing sync.Mutex
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var given command
		if err := json.Unmarshal(input.Bytes(), &given); err != nil {
			log.Fatal(err)
		}
		if given.Op == "connect" {
			connections[given.Name] = &held{}
		}
		go func(one *held) {
			line, err := json.Marshal(one.answered(given))
			if err != nil {
				log.Fatal(err)
			}
			writing.Lock()
			defer writing.Unlock()
			fmt.Println(string(line))
		}(connections[given.Name])
	}
}
