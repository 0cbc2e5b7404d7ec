//go:build v0_43

package main

import "github.com/mark3labs/mcp-go/server"

// subscriptions are a capability that this version can promise and does not serve.
func subscriptions() []server.ServerOption { return nil }

func subscribed(string, string) bool { return false }
