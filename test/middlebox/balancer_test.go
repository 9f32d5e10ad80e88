package middlebox

import (
	"strings"
	"testing"
	"time"

	"culvert/test/agent"
	"culvert/test/thirdparty"
)

// Behind a load balancer that lets no upgrade pass and sends each request to another
// server, no tunnel works, and client and doctor say why. With sticky sessions it does.
func TestTwoServersWithoutUpgrade(t *testing.T) {
	t.Parallel()
	first, tokenFile := newServer(t)
	second, _ := newServer(t, "--token-file", tokenFile)
	balancer := func(method string) string {
		return thirdparty.NginxBalancer(t, method, "127.0.0.1:"+first, "127.0.0.1:"+second)
	}
	flags := func(front string) []string { return []string{"--server", "ws://" + front, "--token-file", tokenFile} }

	roundRobin := balancer("")
	stdout, _, code := doctor(t, flags(roundRobin)...)
	for _, want := range []string{"http carrier  FAIL  ", "reach different servers", "No tunnel comes up.", "- requests reach different culvert servers: have "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("doctor does not say %q", want)
		}
	}
	if code != 1 {
		t.Errorf("doctor ended with %d, want 1", code)
	}
	client := agent.Start(t, "client", agent.Command(programs.Client, append(flags(roundRobin), "--retry-initial", "-L", "0:127.0.0.1:1")...))
	defer client.Kill()
	client.ExpectText(20*time.Second, "reach different servers")

	stdout, _, code = doctor(t, flags(balancer("hash $http_authorization;"))...)
	if code != 0 || !strings.Contains(stdout, "http carrier  ok    comes up in ") {
		t.Errorf("doctor ended with %d behind a balancer with sticky sessions", code)
	}
}
