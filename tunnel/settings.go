package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"culvert/auth"
	"culvert/mux/link"
)

// Settings are what client and server have in common. A zero value means the
// default that its comment names; negative ones are refused, but for Grace.
type Settings struct {
	ResumeWindow     time.Duration // how long a session waits without a carrier; 60 s
	Heartbeat        time.Duration // between two pings of an idle carrier; 20 s
	HeartbeatTimeout time.Duration // for a sign of life after a ping or a write; 10 s
	HandshakeTimeout time.Duration // from TCP connection to carrier; 10 s
	OpenTimeout      time.Duration // for the header of a stream, and at least this long for the reply; 10 s
	ConnectWait      time.Duration // how long a new connection waits for a session and the open reply; 30 s
	DialTimeout      time.Duration // of a target, all its addresses and their lookup together; 10 s
	Grace            time.Duration // for streams to end when stopping; 10 s, none if negative

	ReplayBuffer  int // bytes of a session sent and not acknowledged; link.DefaultReplayBuffer
	MaxMessage    int // bytes of the largest link message accepted; 128 KiB
	MaxStreams    int // of one session; 16,384
	MaxForwards   int // remote forwards of one session; 64
	MaxPending    int // connections of one forward that wait for their open reply; 1,024
	SessionMemory int // bytes of one session received and not read; 64 MiB
	Memory        int // the same of all sessions together; 256 MiB

	Logger *slog.Logger // nil: discarded
	// LogConnections logs the beginning and the end of each connection at the level
	// info; false: at debug.
	LogConnections bool
}

// limit is a setting with its default.
type limit[T int | time.Duration] struct {
	name  string
	value *T
	zero  T
}

func (s *Settings) durations() []limit[time.Duration] {
	return []limit[time.Duration]{
		{"resume window", &s.ResumeWindow, link.DefaultResumeWindow},
		{"heartbeat", &s.Heartbeat, 20 * time.Second},
		{"heartbeat timeout", &s.HeartbeatTimeout, 10 * time.Second},
		{"handshake timeout", &s.HandshakeTimeout, 10 * time.Second},
		{"open timeout", &s.OpenTimeout, 10 * time.Second},
		{"connect wait", &s.ConnectWait, 30 * time.Second},
		{"dial timeout", &s.DialTimeout, 10 * time.Second},
	}
}

func (s *Settings) numbers() []limit[int] {
	return []limit[int]{
		{"replay buffer", &s.ReplayBuffer, link.DefaultReplayBuffer},
		{"largest message", &s.MaxMessage, 128 << 10},
		{"streams per session", &s.MaxStreams, 16384},
		{"forwards per session", &s.MaxForwards, 64},
		{"pending connections", &s.MaxPending, 1024},
		{"session memory", &s.SessionMemory, 64 << 20},
		{"memory", &s.Memory, 256 << 20},
	}
}

// complete checks the limits and gives those that are zero their defaults.
func complete[T int | time.Duration](limits []limit[T]) error {
	var errs []error
	for _, l := range limits {
		switch {
		case *l.value < 0:
			errs = append(errs, fmt.Errorf("%w: %s is negative", ErrConfig, l.name))
		case *l.value == 0:
			*l.value = l.zero
		}
	}
	return errors.Join(errs...)
}

// complete sets the defaults and reports every setting that is out of range.
func (s *Settings) complete() error {
	if s.Grace == 0 {
		s.Grace = 10 * time.Second
	}
	s.Grace = max(s.Grace, 0)
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(complete(s.durations()), complete(s.numbers()))
}

// Forward is a listener at one end and a target that the other end dials.
type Forward struct {
	// Bind is where to listen: an address, a host name, or "*" for all
	// addresses; "localhost", which is both loopback addresses, when empty.
	Bind   string
	Port   int    // to listen on; 0 lets the system choose
	Target string // "host:port", resolved where it is dialled
}

// String is the forward in ssh's syntax, bind:port:host:port.
func (f Forward) String() string { return bindAddress(f.Bind, f.Port) + ":" + f.Target }

// bindAddress is bind and port as one "host:port".
func bindAddress(bind string, port int) string {
	if bind == "" {
		bind = localhost
	}
	return net.JoinHostPort(bind, strconv.Itoa(port))
}

func (f Forward) check() error {
	if f.Port < 0 || f.Port > 65535 {
		return fmt.Errorf("%w: forward %s: port %d out of range", ErrConfig, f, f.Port)
	}
	if _, _, err := splitBind(bindAddress(f.Bind, f.Port)); err != nil {
		return fmt.Errorf("%w: forward %s: %w", ErrConfig, f, err)
	}
	if _, _, err := splitTarget(f.Target); err != nil {
		return fmt.Errorf("%w: forward %s: %w", ErrConfig, f, err)
	}
	return nil
}

// splitTarget takes "host:port" apart; the port is a number above 0.
func splitTarget(target string) (host auth.Host, port uint16, err error) {
	text, digits, err := net.SplitHostPort(target)
	if err != nil {
		return auth.Host{}, 0, err
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 {
		return auth.Host{}, 0, fmt.Errorf("port %q is not a number from 1 to 65535", digits)
	}
	host, err = auth.ParseHost(text)
	return host, uint16(n), err
}
