package program

import (
	"errors"
	"log/slog"
	"math"
	"strings"

	"culvert/config"
	"culvert/tunnel"
)

// Settings turns what both agents' configurations have in common into what the
// agents take.
func Settings(s config.Settings, log *slog.Logger) tunnel.Settings {
	grace := s.Grace
	if grace == 0 {
		grace = -1 // for tunnel 0 is the default
	}
	return tunnel.Settings{
		ResumeWindow: s.ResumeWindow, Heartbeat: s.Heartbeat, HeartbeatTimeout: s.HeartbeatTimeout,
		HandshakeTimeout: s.HandshakeTimeout, OpenTimeout: s.OpenTimeout, ConnectWait: s.ConnectWait,
		DialTimeout: s.DialTimeout, Grace: grace,
		ReplayBuffer: Bytes(s.ReplayBuffer), MaxMessage: Bytes(s.MaxMessage),
		MaxStreams: s.MaxStreams, MaxForwards: s.MaxForwards, MaxPending: s.MaxPending,
		SessionMemory: Bytes(s.SessionMemory), Memory: Bytes(s.Memory),
		Logger: log, LogConnections: s.LogConnections,
	}
}

// Bytes is a size as an int, or the largest int where that has 32 bits.
func Bytes(s config.Size) int { return int(min(int64(s), math.MaxInt)) }

// BadCredential is the problem of a token or token file that auth complains of.
func BadCredential(err error) config.Problem {
	return config.Problem{Key: "token", What: err.Error(), Hint: "check --token-file, CULVERT_TOKEN or wherever it is given"}
}

// Problems is what a loader of config complains of, none if err is nil.
func Problems(err error) config.Problems {
	problems, _ := errors.AsType[config.Problems](err)
	return problems
}

// NeedsRestart is a warning of options that have changed and cannot while an agent
// runs, none if there are none.
func NeedsRestart(names []string) []string {
	if len(names) == 0 {
		return nil
	}
	return []string{"needs a restart to change: " + strings.Join(names, ", ")}
}
