package tunnel

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert/mux/carrier"
	"culvert/mux/link"
)

// A carrier that makes do without a WebSocket is replaced when one may be tried
// again, but not if HTTP is what the user wants.
func TestUpgradeIsTriedAgain(t *testing.T) {
	_, server := startServer(t, nil)
	box := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: server})
		r.Out.Header.Del("Upgrade")
		r.Out.Header.Del("Connection")
	}})
	defer box.Close()
	for mode, least := range map[carrier.Mode]time.Duration{carrier.ModeAuto: time.Second, carrier.ModeHTTP: 0} {
		c, _ := newTestClient(t, strings.TrimPrefix(box.URL, "http://"), func(c *ClientConfig) { c.Carrier = mode })
		s, err := c.newSession(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		life, end := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { s.maintain(life) })
		<-s.opened
		if after := s.replaceAfter(s.link.Carrier()); after < least || after > time.Duration(least.Seconds())*time.Minute {
			t.Errorf("%s: replaced after %v", mode, after)
		}
		closeSession(s.mux, s.link, "end of the test")
		end()
		running.Wait()
		s.cancel()
	}
}

// While the session has a carrier, only its own server is asked for another one.
func TestReplacementComesFromTheSameServer(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer other.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	c, _ := newTestClient(t, strings.TrimPrefix(gone.URL, "http://"), func(c *ClientConfig) {
		c.Servers = append(c.Servers, &url.URL{Scheme: "ws", Host: strings.TrimPrefix(other.URL, "http://")})
		c.Carrier = carrier.ModeWebSocket
	})
	s := &clientSession{client: c, log: c.log, elsewhere: make(chan struct{}, 1)}
	for _, tt := range []struct {
		carrier link.Carrier
		want    int32
	}{{struct{ link.Carrier }{}, 0}, {nil, 1}} {
		s.carrier = tt.carrier
		if _, _, err := s.dial(t.Context(), nil); err == nil {
			t.Fatal("dialled")
		}
		if got := asked.Load(); got != tt.want {
			t.Errorf("the other server was asked %d times, want %d", got, tt.want)
		}
	}
}

// door is a box before a server that lets no upgrade pass, or every one, or every one
// and no message after it.
type door struct {
	does     atomic.Int32
	upgrades atomic.Int32 // that it has let pass
	route    atomic.Value // string: of the client's, changed with what it does
}

const (
	strips = iota
	passes
	mutes
)

func (d *door) become(does int32, route string) {
	d.does.Store(does)
	d.route.Store(route)
}

// dumb is a connection on which nothing passes.
type dumb struct {
	io.ReadWriteCloser
	closed chan struct{}
	once   sync.Once
}

func (d *dumb) Read([]byte) (int, error) {
	<-d.closed
	return 0, io.EOF
}

func (d *dumb) Write(p []byte) (int, error) { return len(p), nil }

func (d *dumb) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.ReadWriteCloser.Close()
}

// behindDoor starts a server behind a door that strips, and a client that has noticed.
// They have a stream, between app and far.
func behindDoor(t *testing.T) (d *door, client *agent, app, far *net.TCPConn) {
	_, server := startServer(t, nil)
	d = new(door)
	d.route.Store("here")
	box := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: server})
		if d.does.Load() == strips {
			r.Out.Header.Del("Upgrade")
			r.Out.Header.Del("Connection")
		}
	}, ModifyResponse: func(resp *http.Response) error {
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return nil
		}
		if d.does.Load() == mutes {
			resp.Body = &dumb{ReadWriteCloser: resp.Body.(io.ReadWriteCloser), closed: make(chan struct{})}
		}
		d.upgrades.Add(1)
		return nil
	}, ErrorLog: log.New(io.Discard, "", 0)})
	t.Cleanup(box.Close)
	addr, conns := target(t)
	c, journal := newTestClient(t, strings.TrimPrefix(box.URL, "http://"), local(addr))
	c.newWatch = func() *watch {
		return &watch{now: time.Now, route: func(string) string { return d.route.Load().(string) }}
	}
	client = startAgent(t, journal, c.Run)
	app = connect(t, client.listening(t, "local"))
	far = within(t, conns, "connection to the target")
	greet(t, app, far)
	client.find(t, "session opened", "carrier=http")
	for c.watched() == "" { // the route before it changes
		<-time.After(10 * time.Millisecond)
	}
	return d, client, app, far
}

func (c *Client) watched() string {
	_, from := c.way()
	return from
}

// A client that leaves a network that strips upgrades goes on with a WebSocket, and not
// when the other network's time is over.
func TestAnotherNetworkIsTriedAnew(t *testing.T) {
	t.Parallel()
	d, client, app, far := behindDoor(t)
	d.become(passes, "there")
	client.find(t, "network changed")
	start := time.Now()
	client.find(t, "carrier replaced")
	if took := time.Since(start); took > 10*time.Second || d.upgrades.Load() == 0 {
		t.Errorf("after %v, with %d upgrades", took, d.upgrades.Load())
	}
	exchange(t, app, far)
	if strings.Contains(client.String(), "session lost") {
		t.Error("the session was lost")
	}
}

// A WebSocket on which nothing passes after the upgrade does not take the place of an
// HTTP pipe that works.
func TestMuteWebSocketReplacesNothing(t *testing.T) {
	t.Parallel()
	d, client, app, far := behindDoor(t)
	d.become(mutes, "there")
	client.find(t, "network changed")
	for deadline := time.Now().Add(10 * time.Second); d.upgrades.Load() == 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no WebSocket is tried")
		}
	}
	greet(t, app, far)
	exchange(t, app, far)
	if log := client.String(); strings.Contains(log, "session lost") || strings.Contains(log, "carrier replaced") {
		t.Error("the HTTP pipe was replaced")
	}
}

// That the network has changed between two sessions is noticed, too.
func TestNetworkChangesBetweenSessions(t *testing.T) {
	c, journal := newTestClient(t, "127.0.0.1:1", nil)
	c.setWay("192.0.2.1:443", "here")
	c.newWatch = func() *watch {
		return &watch{now: time.Now, route: func(string) string { return "there" }}
	}
	s, err := c.newSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.watch(ctx) })
	(&agent{journal: journal}).find(t, "network changed")
	end()
	running.Wait()
	closeSession(s.mux, s.link, "end of the test")
	s.cancel()
}
