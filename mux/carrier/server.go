package carrier

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServerConfig is what a Server is made of. A zero field means its default.
type ServerConfig struct {
	// Handler gets the requests; normally a *Handler. Required.
	Handler http.Handler

	// HandshakeTimeout bounds each step before a connection is a carrier: the TLS
	// handshake, a request, an answer, and the wait for the next request. Default
	// 10 s.
	HandshakeTimeout time.Duration

	// MaxHeaderBytes bounds the request line and header. Default 16 KiB.
	MaxHeaderBytes int

	// MaxUnauthenticated bounds the connections that are no carriers, or not yet.
	// When one more comes, the one that has waited longest is closed, since a
	// good client needs an instant only. Default 1024.
	MaxUnauthenticated int

	// MaxUnauthenticatedPerAddress bounds them for each remote IPv4 address or
	// IPv6 /64 network; one more is closed. Default 64.
	MaxUnauthenticatedPerAddress int

	// Logger gets a warning when a limit bites or connections cannot be
	// accepted, rarely enough for a flood. Nil discards them.
	Logger *slog.Logger
}

// Server is an http.Server set up for carriers: HTTP/1.1 only, with time-outs
// and limits for everything that comes before the upgrade.
type Server struct {
	cfg ServerConfig
}

// NewServer returns a Server. It opens nothing.
func NewServer(cfg ServerConfig) *Server {
	cfg.HandshakeTimeout = cmp.Or(cfg.HandshakeTimeout, defaultHandshakeTimeout)
	cfg.MaxHeaderBytes = cmp.Or(cfg.MaxHeaderBytes, 16<<10)
	cfg.MaxUnauthenticated = cmp.Or(cfg.MaxUnauthenticated, 1024)
	cfg.MaxUnauthenticatedPerAddress = cmp.Or(cfg.MaxUnauthenticatedPerAddress, 64)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg}
}

// Serve serves the connections that ln accepts, over TLS if tlsConf is not nil,
// and closes ln. It returns nil when ctx has ended, and otherwise the error that
// kept it from accepting. By then every connection that was not upgraded is
// closed and every handler has returned; carriers live on. It may be called for
// several listeners, each with limits of its own.
func (s *Server) Serve(ctx context.Context, ln net.Listener, tlsConf *tls.Config) error {
	limited := newLimitListener(ln, s.cfg.MaxUnauthenticated, s.cfg.MaxUnauthenticatedPerAddress, s.cfg.Logger)
	var secured net.Listener = limited
	if tlsConf != nil {
		secured = tls.NewListener(limited, hardenTLS(tlsConf.Clone()))
	}

	// One for each connection that http.Server still has, and one for each
	// handler that runs, which may be longer.
	var busy sync.WaitGroup
	hs := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			busy.Add(1)
			defer busy.Done()
			s.cfg.Handler.ServeHTTP(w, r)
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				busy.Add(1)
			case http.StateHijacked, http.StateClosed:
				busy.Done()
			}
		},
		ReadHeaderTimeout: s.cfg.HandshakeTimeout,
		ReadTimeout:       s.cfg.HandshakeTimeout,
		WriteTimeout:      s.cfg.HandshakeTimeout,
		IdleTimeout:       s.cfg.HandshakeTimeout,
		MaxHeaderBytes:    s.cfg.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}
	hs.Protocols.SetHTTP1(true)

	stop := context.AfterFunc(ctx, func() { _ = hs.Close() })
	err := hs.Serve(secured)
	stop()
	_ = hs.Close()
	limited.closeConns()
	busy.Wait()
	if errors.Is(err, http.ErrServerClosed) && ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept: %w", err)
}
