package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/tunnel"
)

const (
	mib      = 1 << 20
	demoRate = 8 * mib // bytes per second of the demo's own download
	// demoGrace is how long a user's download may go on after Ctrl-C.
	demoGrace = time.Second
)

func demoCommand() *program.Command {
	d := new(demo)
	return &program.Command{
		Name:    "demo",
		Summary: "download through a tunnel whose WebSocket is cut every few seconds",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "duration", Value: 15 * time.Second, Usage: "how long the download takes", Destination: &d.duration},
			&cli.DurationFlag{Name: "cut-every", Value: 2 * time.Second, Usage: "time between two cuts", Destination: &d.every},
			&cli.BoolFlag{Name: "once", Usage: "end after the download instead of waiting for Ctrl-C", Destination: &d.once},
			&cli.BoolFlag{Name: "verbose", Usage: "show the log of both agents on standard error", Destination: &d.verbose},
		},
		Prepare: func(_ config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			var problems config.Problems
			for _, f := range []struct {
				name  string
				value time.Duration
			}{{"--duration", d.duration}, {"--cut-every", d.every}} {
				if f.value < 10*time.Millisecond || f.value > time.Minute {
					problems = append(problems, config.Problem{Key: f.name, What: f.value.String() + " is out of range", Hint: "give 10ms to 1m"})
				}
			}
			if len(problems) > 0 {
				return nil, problems
			}
			level := slog.LevelError
			if d.verbose {
				level = slog.LevelInfo
			}
			d.out, d.log = stdout, program.NewLogger(stderr, "text", level)
			return &program.Job{Run: d.run, Log: d.log}, nil
		},
	}
}

// demo is a web site, a server, a relay that cuts and a client in one process, over
// real sockets.
type demo struct {
	duration, every time.Duration
	once, verbose   bool
	log             *slog.Logger

	relay *cutter

	downloaded atomic.Int64 // bytes of the demo's own download
	cuts       atomic.Int64 // that a download has survived

	mu  sync.Mutex
	out io.Writer
}

func (d *demo) print(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format, args...)
}

// run shows it all. It returns when everything it started has ended: first the
// agents, then what they lean on.
func (d *demo) run(ctx context.Context) error {
	site, err := startSite(ctx)
	if err != nil {
		return err
	}
	defer site.close()
	if d.relay, err = newCutter(ctx); err != nil {
		return err
	}
	defer d.relay.close()

	agents, stop := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop(nil)
	start := func(run func(context.Context) error) {
		running.Go(func() {
			if err := run(agents); err != nil {
				stop(err)
			}
		})
	}
	err = d.show(agents, start, site.addr)
	switch {
	case ctx.Err() != nil: // the user has seen enough
		return nil
	case agents.Err() != nil: // an agent has failed, and err follows from that
		return context.Cause(agents)
	default:
		return err
	}
}

func (d *demo) show(ctx context.Context, start func(func(context.Context) error), site string) error {
	entrance, err := d.startTunnel(ctx, start, site)
	if err != nil {
		return err
	}
	d.print(`A tunnel in one process, over real sockets:

  http://%s ─▶ client ══ WebSocket, reset every %s ══▶ server ─▶ a small web site

Downloading %d MiB through it, at %d MiB/s:
`, entrance, d.every, d.size()/mib, demoRate/mib)
	start(d.cut)
	if err := d.download(ctx, "http://"+entrance+downloadPath(d.size())); err != nil {
		return err
	}
	if d.once {
		return nil
	}
	d.print(`
The tunnel stays open and is cut again whenever something is downloaded:
  curl -o /dev/null --limit-rate 20M http://%s%s
  http://%s/ in a browser
Ctrl-C ends.
`, entrance, downloadPath(256*mib), entrance)
	<-ctx.Done()
	return nil
}

// startTunnel starts both agents, with the relay between them, and returns where the
// client's forward to target listens.
func (d *demo) startTunnel(ctx context.Context, start func(func(context.Context) error), target string) (entrance string, err error) {
	token := rand.Text()
	identities, _, err := auth.NewTokens(auth.Everything(), token)
	if err != nil {
		return "", err
	}
	directory, err := auth.NewDirectory(auth.DirectoryConfig{Identities: identities})
	if err != nil {
		return "", err
	}
	server, err := tunnel.NewServer(tunnel.ServerConfig{
		Listen: "127.0.0.1:0", Guard: auth.NewGuard(directory),
		Settings: tunnel.Settings{Grace: demoGrace, Logger: d.log.With("agent", "server")},
	})
	if err != nil {
		return "", err
	}
	start(server.Run)
	address, err := server.Addr(ctx)
	if err != nil {
		return "", err
	}
	d.relay.start(ctx, address.String())

	found := make(chan string, 1)
	log := slog.New(addressFinder{d.log.Handler(), found}).With("agent", "client")
	client, err := tunnel.NewClient(tunnel.ClientConfig{
		Servers:    []*url.URL{{Scheme: "ws", Host: d.relay.addr(), Path: "/"}},
		Credential: func() (string, error) { return token, nil },
		Local:      []tunnel.Forward{{Target: target}},
		Settings:   tunnel.Settings{Grace: demoGrace, Logger: log},
	})
	if err != nil {
		return "", err
	}
	start(client.Run)
	select {
	case entrance = <-found:
		return entrance, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// cut cuts the tunnel's connection again and again, in the middle of whatever is
// being downloaded, and says so.
func (d *demo) cut(ctx context.Context) error {
	ticker := time.NewTicker(d.every)
	defer ticker.Stop()
	var moved int64
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		before := moved
		moved = d.relay.moved.Load()
		if moved-before < mib/16 {
			continue // nobody would notice
		}
		at := d.downloaded.Load()
		if !d.relay.cut() {
			continue
		}
		select {
		case took := <-d.relay.resumed:
			n, where := d.cuts.Add(1), ""
			if at < d.size() {
				where = fmt.Sprintf(" at %d MiB", at/mib)
			}
			d.print("  cut #%d%s, resumed in %.1f ms\n", n, where, float64(took)/float64(time.Millisecond))
		case <-ctx.Done():
			return nil
		}
	}
}

// size is that of the demo's own download in bytes: whole MiB, at least one.
func (d *demo) size() int64 {
	return max(int64(d.duration.Seconds()*demoRate)/mib, 1) * mib
}

// download reads url at demoRate and checks what arrives against the checksum that
// the site has said before.
func (d *demo) download(ctx context.Context, url string) error {
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the demo's web site answered %s", response.Status)
	}

	sum := sha256.New()
	began := time.Now()
	for buffer := make([]byte, 64<<10); ; {
		n, err := response.Body.Read(buffer)
		sum.Write(buffer[:n])
		total := d.downloaded.Add(int64(n))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("the download broke off after %d bytes: %w", total, err)
		}
		due := began.Add(time.Duration(float64(total) / demoRate * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	got, want := hex.EncodeToString(sum.Sum(nil)), response.Header.Get(checksumHeader)
	if got != want {
		return fmt.Errorf("what arrived is not what was sent: SHA-256 %s, not %s", got, want)
	}
	d.print("%d MiB in %.1f s through %d cuts. SHA-256 as sent and as received:\n  %s\n  %s\nNothing was lost, repeated or reordered.\n",
		d.downloaded.Load()/mib, time.Since(began).Seconds(), d.cuts.Load(), want, got)
	return nil
}

// addressFinder is a log handler that looks out for the event which says where a
// forward listens: with port 0 nobody knows before.
type addressFinder struct {
	slog.Handler
	found chan<- string // with room for one address
}

// Enabled is true for the event's level, whatever is shown.
func (h addressFinder) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle passes on what is to be shown.
func (h addressFinder) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "forward listening" {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "address" {
				select {
				case h.found <- a.Value.String():
				default:
				}
			}
			return true
		})
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps looking out.
func (h addressFinder) WithAttrs(attrs []slog.Attr) slog.Handler {
	return addressFinder{h.Handler.WithAttrs(attrs), h.found}
}

// WithGroup keeps looking out.
func (h addressFinder) WithGroup(name string) slog.Handler {
	return addressFinder{h.Handler.WithGroup(name), h.found}
}
