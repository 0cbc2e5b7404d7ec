//go:build !v0_43

package main

import (
	"context"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
)

var uris = map[[2]string]bool{}

// subscriptions remembers who has subscribed to what, which the SDK leaves to its users.
func subscriptions() []server.ServerOption {
	hooks := &server.Hooks{}
	hooks.AddBeforeSubscribe(func(ctx context.Context, _ any, message *mcp.SubscribeRequest) {
		mutex.Lock()
		defer mutex.Unlock()
		uris[[2]string{sessionOf(ctx), message.Params.URI}] = true
	})
	return []server.ServerOption{server.WithHooks(hooks)}
}

func subscribed(session, uri string) bool {
	mutex.Lock()
	defer mutex.Unlock()
	return uris[[2]string{session, uri}]
}
