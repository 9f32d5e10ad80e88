package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"

	"culvert/config"
	"culvert/tunnel/audit"
)

// auditLog is the server's audit log, if it has one, and the file that is written to.
type auditLog struct {
	log  *audit.Log  // nil: none
	file *audit.File // nil: not a file
}

// openAudit opens the audit log that cfg asks for, which its user closes.
func openAudit(cfg *config.Server, stdout io.Writer, log *slog.Logger) (auditLog, error) {
	var a auditLog
	w := stdout
	switch cfg.Audit {
	case "":
		return a, nil
	case "-":
	default:
		var err error
		if a.file, err = audit.Open(cfg.Audit, int64(cfg.AuditMaxSize), cfg.AuditKeep); err != nil {
			return a, config.Problems{{Key: "--audit", What: err.Error(), Hint: "give a file in a folder that the server may write to"}}
		}
		w = a.file
	}
	a.log = audit.New(w, func(err error, events int) {
		log.Error("audit log not written", "error", err, "events", events)
	})
	return a, nil
}

// exposedAudit returns a warning if the file of the audit log is there and everybody can
// read it, or others than its owner can change it. Its mode stays as it is: a group may be
// meant to read it.
func exposedAudit(path string) []string {
	info, err := os.Stat(path)
	if path == "-" || err != nil || runtime.GOOS == "windows" || !info.Mode().IsRegular() || info.Mode().Perm()&0o026 == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s: the audit log can be read by everybody or changed by others than its owner (mode %04o); chmod 600 it, or 640",
		path, info.Mode().Perm())}
}

// reopen goes on in the file that is at the path now. If that fails, nothing changes.
func (a auditLog) reopen() error {
	if a.file == nil {
		return nil
	}
	return a.file.Reopen()
}

func (a auditLog) close() {
	if a.file != nil {
		_ = a.file.Close() // every line was written at once
	}
}
