package main

import (
	"encoding/json"
	"strings"
	"testing"

	"culvert/tunnel"
)

// Programs that read --json get the advice after a FAIL, too, and only there.
func TestReportAsJSON(t *testing.T) {
	var out strings.Builder
	r := report{json: json.NewEncoder(&out), asJSON: true}
	r.finding(tunnel.Finding{Step: "forward", Verdict: tunnel.VerdictFail, Text: "x", Err: &tunnel.ForwardError{Flag: "-L", AtFar: true}})
	r.finding(tunnel.Finding{Step: "connect", Verdict: tunnel.VerdictOK, Text: "y", Value: 0.5, Unit: "s"})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"advice":"check the address`) || strings.Contains(lines[1], "advice") {
		t.Errorf("printed:\n%s", &out)
	}
	if want := `{"step":"connect","verdict":"ok","text":"y","value":0.5,"unit":"s"}`; lines[len(lines)-1] != want {
		t.Errorf("printed %s, want %s", lines[len(lines)-1], want)
	}
}
