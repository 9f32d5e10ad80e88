package attack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"

	"culvert/auth"
	"culvert/tunnel"
)

const (
	tokenOfAlice = "alice-0123456789abcdefghij"
	tokenOfBob   = "bob-0123456789abcdefghij"
)

// token is how a server knows a token.
func token(text string) auth.Token { return auth.Token{Sum: sha256.Sum256([]byte(text))} }

// people are alice and bob with their tokens, who may do what is not denied to all.
func people() []auth.Identity {
	return []auth.Identity{
		{Name: "alice", Tokens: []auth.Token{token(tokenOfAlice)}, Policy: auth.Everything()},
		{Name: "bob", Tokens: []auth.Token{token(tokenOfBob)}, Policy: auth.Everything()},
	}
}

func newDirectory(t testing.TB, identities ...auth.Identity) *auth.Directory {
	t.Helper()
	d, err := auth.NewDirectory(auth.DirectoryConfig{Identities: identities})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// journal is a log to look at.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// startServer runs a server at loopback until the test ends, and returns its address
// and its log. Nil edit leaves alice and bob to everything.
func startServer(t testing.TB, edit func(*tunnel.ServerConfig)) (addr string, log *journal) {
	t.Helper()
	log = new(journal)
	cfg := tunnel.ServerConfig{
		Listen:   "127.0.0.1:0",
		Settings: tunnel.Settings{Grace: -1, Logger: slog.New(slog.NewTextHandler(log, nil))},
	}
	if edit != nil {
		edit(&cfg)
	}
	if cfg.Guard == nil {
		cfg.Guard = auth.NewGuard(newDirectory(t, people()...))
	}
	s, err := tunnel.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("%s", log)
		}
	})
	at, err := s.Addr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return at.String(), log
}

// startEcho sends back whatever comes, until the test ends.
func startEcho(t testing.TB) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return ln.Addr().String()
}
