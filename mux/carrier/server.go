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
	"net/netip"
	"sync"
	"time"
)

// connectionsPerPipe is how many connections a client may have for each pipe that it may
// have: the requests of one are two at a time, and for a moment there are more.
const connectionsPerPipe = 4

// headerSlack is how many bytes net/http reads beyond Server.MaxHeaderBytes.
const headerSlack = 4 << 10

// ServerConfig is what a Server is made of. A zero field means its default.
type ServerConfig struct {
	// Handler gets the requests; normally a *Handler. Required.
	Handler http.Handler

	// HandshakeTimeout bounds each step before a connection is a carrier: the TLS
	// handshake, a request, an answer, and the wait for the next request. Default
	// 10 s.
	HandshakeTimeout time.Duration

	// MaxHeaderBytes bounds the request line and header. Default 32 KiB.
	MaxHeaderBytes int

	// MaxUnauthenticated bounds the connections that are no carriers, or not yet.
	// When one more comes, the one that has waited longest is closed, since a
	// good client needs an instant only. Default 1024.
	MaxUnauthenticated int

	// MaxUnauthenticatedPerAddress bounds them for each remote IPv4 address or
	// IPv6 /64 network, and four times as many for each IPv6 /48 network; one more is
	// closed. Default 64.
	MaxUnauthenticatedPerAddress int

	// TrustedProxies are where reverse proxies of the server's own connect from. Of
	// their requests RemoteAddr is who they say the client is, in X-Forwarded-For: the
	// last address there that is not trusted itself, with port 0 if they say none. They
	// are not bounded per address. From anybody else such headers are removed.
	TrustedProxies []netip.Prefix

	// MaxPipes bounds the HTTP pipes, which clients with a credential open where no
	// upgrade passes; each is or becomes a carrier. Default 2048.
	MaxPipes int

	// MaxPipesPerIdentity bounds them for each identity, and the connections of its
	// carriers and of the requests of its pipes to four times as many. Default 128.
	MaxPipesPerIdentity int

	// PipeMemory bounds the bytes that wait in all pipes, and those of the buffers of
	// their requests, but that each pipe may hold 32 KiB in each direction. Default 32 MiB.
	PipeMemory int64

	// PipeIdle is how long a pipe lives without a request of its client. It must
	// be longer than a client pauses, which is an instant. Default 30 s.
	PipeIdle time.Duration

	// Logger gets a warning when a limit bites or connections cannot be
	// accepted, rarely enough for a flood. Nil discards them.
	Logger *slog.Logger
}

// Server is an http.Server set up for carriers: HTTP/1.1 only, with time-outs
// and limits for everything that comes before the upgrade.
type Server struct {
	cfg    ServerConfig
	memory *pipeMemory
}

// NewServer returns a Server. It opens nothing.
func NewServer(cfg ServerConfig) *Server {
	cfg.HandshakeTimeout = cmp.Or(cfg.HandshakeTimeout, defaultHandshakeTimeout)
	cfg.MaxHeaderBytes = cmp.Or(cfg.MaxHeaderBytes, 32<<10)
	cfg.MaxUnauthenticated = cmp.Or(cfg.MaxUnauthenticated, 1024)
	cfg.MaxUnauthenticatedPerAddress = cmp.Or(cfg.MaxUnauthenticatedPerAddress, 64)
	cfg.MaxPipes = cmp.Or(cfg.MaxPipes, 2048)
	cfg.MaxPipesPerIdentity = cmp.Or(cfg.MaxPipesPerIdentity, 128)
	cfg.PipeMemory = cmp.Or(cfg.PipeMemory, 32<<20)
	cfg.PipeIdle = cmp.Or(cfg.PipeIdle, pipeIdle)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, memory: &pipeMemory{limit: cfg.PipeMemory}}
}

// Serve serves the connections that ln accepts, over TLS if tlsConf is not nil,
// and closes ln. It returns nil when ctx has ended, and otherwise the error that
// kept it from accepting. By then every connection that was not upgraded is
// closed and every handler has returned; carriers live on, but for those over HTTP
// pipes, which need it. It may be called for several listeners, each with limits and
// pipes of its own, but for PipeMemory.
func (s *Server) Serve(ctx context.Context, ln net.Listener, tlsConf *tls.Config) error {
	limited := newLimitListener(ln, s.cfg.MaxUnauthenticated, s.cfg.MaxUnauthenticatedPerAddress,
		connectionsPerPipe*s.cfg.MaxPipesPerIdentity, s.cfg.Logger)
	limited.exempt = trustedProxies(s.cfg.TrustedProxies).has
	var secured net.Listener = limited
	if tlsConf != nil {
		secured = tls.NewListener(limited, HardenTLS(tlsConf.Clone()))
	}

	// A pipe is a connection of the same server: one that comes inside of requests.
	piped := newPipes(s.cfg.MaxPipes, s.cfg.MaxPipesPerIdentity, s.cfg.PipeIdle, s.memory, s.cfg.Logger)
	requests, endRequests := context.WithCancel(context.WithValue(context.Background(), pipesKey{}, piped))
	defer endRequests()

	// One for each connection that http.Server still has, and one for each
	// handler that runs, which may be longer.
	var busy sync.WaitGroup
	hs := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			busy.Add(1)
			defer busy.Done()
			trusted := trustedProxies(s.cfg.TrustedProxies)
			if insidePipe(r) { // RemoteAddr is that of the pipe's requests, beyond trusted proxies
				trusted = nil
			}
			trusted.resolve(r)
			s.cfg.Handler.ServeHTTP(w, r)
		}),
		ConnState: func(conn net.Conn, state http.ConnState) {
			wire := findWire(conn)
			switch state {
			case http.StateNew:
				busy.Add(1)
			case http.StateActive:
				if wire != nil {
					wire.counted.begins()
				}
			case http.StateIdle:
				if wire != nil {
					wire.counted.rests()
				}
			case http.StateHijacked, http.StateClosed:
				busy.Done()
			}
		},
		BaseContext: func(ln net.Listener) context.Context {
			if ln == piped { // there is no pipe inside of a pipe
				return context.WithValue(context.Background(), insideKey{}, true)
			}
			return requests
		},
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
		ReadHeaderTimeout: s.cfg.HandshakeTimeout,
		ReadTimeout:       s.cfg.HandshakeTimeout,
		WriteTimeout:      s.cfg.HandshakeTimeout,
		IdleTimeout:       s.cfg.HandshakeTimeout,
		MaxHeaderBytes:    max(1, s.cfg.MaxHeaderBytes-headerSlack),
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}
	hs.Protocols.SetHTTP1(true)

	var serving sync.WaitGroup
	serving.Go(func() { _ = hs.Serve(piped) })
	stop := context.AfterFunc(ctx, func() { _ = hs.Close() })
	err := hs.Serve(secured)
	stop()
	_ = hs.Close()
	piped.Close()
	endRequests()
	serving.Wait()
	limited.closeConns()
	piped.closeAll()
	busy.Wait()
	if errors.Is(err, http.ErrServerClosed) && ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept: %w", err)
}
