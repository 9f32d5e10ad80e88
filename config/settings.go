package config

import (
	"log/slog"
	"time"
)

// Settings are what both agents have in common.
type Settings struct {
	File       string // the configuration file, "" for none
	SecretFile string // File when a secret stands in it, else ""

	ResumeWindow     time.Duration
	ReplayBuffer     Size
	Heartbeat        time.Duration
	HeartbeatTimeout time.Duration
	HandshakeTimeout time.Duration
	OpenTimeout      time.Duration
	ConnectWait      time.Duration
	DialTimeout      time.Duration
	Grace            time.Duration // 0 for none
	MaxMessage       Size
	MaxStreams       int
	MaxForwards      int
	MaxPending       int
	SessionMemory    Size
	Memory           Size

	LogFormat      string // "text" or "json"
	LogLevel       slog.Level
	LogConnections bool
}

func (s *Settings) options() []Option {
	const (
		ms   = int64(time.Millisecond)
		hour = int64(time.Hour)
		kib  = 1 << 10
		mib  = 1 << 20
		gib  = 1 << 30
	)
	return []Option{
		{Name: "resume-window", Default: "60s", min: 10 * ms, max: 24 * hour, target: &s.ResumeWindow,
			Help: "how long a session without a connection is kept"},
		{Name: "replay-buffer", Default: "16MiB", min: 16 * kib, max: gib, target: &s.ReplayBuffer,
			Help: "bytes of a session that may be sent and not yet acknowledged; writers wait when it is full"},
		{Name: "heartbeat", Default: "20s", min: 10 * ms, max: hour, target: &s.Heartbeat,
			Help: "interval of WebSocket pings"},
		{Name: "heartbeat-timeout", Default: "10s", min: 10 * ms, max: hour, target: &s.HeartbeatTimeout,
			Help: "how long the peer may stay silent when it has something to answer"},
		{Name: "handshake-timeout", Default: "10s", min: 10 * ms, max: hour, target: &s.HandshakeTimeout,
			Help: "time for TLS and the HTTP upgrade"},
		{Name: "open-timeout", Default: "10s", min: 10 * ms, max: hour, target: &s.OpenTimeout,
			Help: "time for the header of a new stream and for the reply to it"},
		{Name: "connect-wait", Default: "30s", min: 10 * ms, max: hour, target: &s.ConnectWait,
			Help: "how long a new connection to a forward waits for a session"},
		{Name: "dial-timeout", Default: "10s", min: 10 * ms, max: hour, target: &s.DialTimeout,
			Help: "time to resolve and reach a target"},
		{Name: "grace", Default: "10s", min: 0, max: 24 * hour, target: &s.Grace,
			Help: "how long streams may go on after SIGTERM or SIGINT"},
		{Name: "max-message", Default: "128KiB", min: 4 * kib, max: 16 * mib, target: &s.MaxMessage,
			Help: "largest WebSocket message"},
		{Name: "max-streams", Default: "16384", min: 1, max: 1 << 20, target: &s.MaxStreams,
			Help: "streams that each end may have open in one session; more are refused"},
		{Name: "max-forwards", Default: "64", min: 1, max: 65536, target: &s.MaxForwards,
			Help: "remote forwards of one session"},
		{Name: "max-pending", Default: "1024", min: 1, max: 1 << 20, target: &s.MaxPending,
			Help: "connections of one forward that wait for their target"},
		{Name: "session-memory", Default: "64MiB", min: mib, max: 1 << 40, target: &s.SessionMemory,
			Help: "buffered bytes of one session; past it the longest-blocked stream is reset"},
		{Name: "memory", Default: "256MiB", min: mib, max: 1 << 40, target: &s.Memory,
			Help: "memory of the whole process: bytes buffered or kept to be sent again, and 8 KiB for each stream; past it whoever uses most loses streams"},
		{Name: "log-format", Default: "text", choices: []string{"text", "json"}, target: &s.LogFormat,
			Help: "form of the log on standard error"},
		{Name: "log-level", Switch: "v", SwitchTo: "debug", Default: "info", choices: []string{"debug", "info", "warn", "error"}, target: &s.LogLevel,
			Help: "least severe events that are logged; -v is --log-level debug"},
		{Name: "log-connections", target: &s.LogConnections,
			Help: "log the beginning and the end of each connection at the level info, with its target and bytes"},
	}
}

// fileOption stands apart from the other settings because it comes first in the
// tables and is not a key of the file that it names.
func (s *Settings) fileOption() Option {
	return Option{Name: fileOptionName, Placeholder: "FILE", file: always, FlagOnly: true, target: &s.File,
		Help: "YAML file with any of these options as keys"}
}

const fileOptionName = "config"

// checkSettings looks at settings that depend on each other.
func (l *loader) checkSettings(s *Settings) {
	if s.ReplayBuffer < s.MaxMessage {
		l.problem("replay-buffer", 0, "give at least --max-message", "%s is less than one message (%s)", s.ReplayBuffer, s.MaxMessage)
	}
	if s.Memory < s.SessionMemory {
		l.problem("memory", 0, "give at least --session-memory", "%s is less than one session's memory (%s)", s.Memory, s.SessionMemory)
	}
}
