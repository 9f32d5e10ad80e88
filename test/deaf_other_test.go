//go:build !linux

package test

import (
	"testing"

	"culvert/test/thirdparty"
)

func deaf(t *testing.T) string {
	t.Skip("needs a listener whose full backlog drops, as Linux's does")
	return ""
}

func closed(t *testing.T) string { return "127.0.0.1:" + thirdparty.FreePort(t) }
