package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/urfave/cli/v2"

	"culvert/config"
	"culvert/test/bubble"
)

// start runs the client's command line with a job that notes what it was given and
// ends with err.
func start(t *testing.T, err error, args ...string) (flags map[string][]string, stdout, stderr string, code int) {
	t.Helper()
	var out, errors strings.Builder
	var once bool
	var arguments []string
	p := Program{
		Name: "culvert-client", Summary: "a test", Options: config.ClientOptions(), Ignored: []string{"N"},
		Prepare: func(src config.Sources, stderr io.Writer) (*Job, error) {
			flags = src.Flags
			job := &Job{Log: NewLogger(stderr, "text", 0), Warnings: []string{"take care"}}
			job.Run = func(context.Context) error { return err }
			return job, nil
		},
		Commands: []*Command{{
			Name: "sub", Summary: "a command", Options: config.ClientOptions(),
			Flags: []cli.Flag{&cli.BoolFlag{Name: "once", Usage: "do it once", Destination: &once}},
			Prepare: func(src config.Sources, stdout, stderr io.Writer) (*Job, error) {
				return &Job{Log: NewLogger(stderr, "text", 0), Run: func(context.Context) error {
					_, err := fmt.Fprint(stdout, "sub once=", once, " local=", src.Flags["local"])
					return err
				}}, nil
			},
		}, {
			Name: "group", Summary: "commands",
			Commands: []*Command{{
				Name: "echo", Summary: "say it", Arguments: "WORD...", Args: &arguments,
				Prepare: func(_ config.Sources, stdout, stderr io.Writer) (*Job, error) {
					return &Job{Log: NewLogger(stderr, "text", 0), Run: func(context.Context) error {
						_, err := fmt.Fprintf(stdout, "%q", arguments)
						return err
					}}, nil
				},
			}},
		}},
	}
	code = p.Run(t.Context(), append([]string{"culvert-client"}, args...), &out, &errors)
	for name := range flags {
		if len(flags[name]) == 0 {
			delete(flags, name)
		}
	}
	return flags, out.String(), errors.String(), code
}

func TestFlags(t *testing.T) {
	flags, stdout, stderr, code := start(t, nil,
		"--server", "ws://h", "-L", "1:h:1", "--local=2:h:2", "-L", "3:h:3,4:h:4", "-R", "5:h:5",
		"--header", "X-A: 1, 2", "--header", "X-B: ", "--retry-initial", "--allow-plaintext=false", "-max-backoff", "-1s", "--token", "")
	want := map[string][]string{
		"server": {"ws://h"}, "local": {"1:h:1", "2:h:2", "3:h:3,4:h:4"}, "remote": {"5:h:5"},
		"header": {"X-A: 1, 2", "X-B: "}, "retry-initial": {"true"}, "allow-plaintext": {"false"}, "max-backoff": {"-1s"}, "token": {""},
	}
	if !reflect.DeepEqual(flags, want) {
		t.Errorf("flags are %q, want %q", flags, want)
	}
	if code != exitOK || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, `level=WARN msg="take care"`) {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestCommandLine(t *testing.T) {
	tests := []struct {
		name           string
		args           []string
		err            error
		code           int
		stdout, stderr string // parts; no stderr at all when ""
	}{
		{"help", []string{"--help"}, nil, 0, "Usage: culvert-client [flags]", ""},
		{"short help", []string{"-h"}, nil, 0, "Usage: culvert-client [flags]", ""},
		{"version", []string{"--version"}, nil, 0, "culvert-client ", ""},
		{"typo", []string{"--sever", "ws://h"}, nil, 2, "", `culvert-client: there is no flag "--sever"; did you mean --server?` + "\n"},
		{"alien", []string{"--qqqqqqqqqqqqqq"}, nil, 2, "", `culvert-client: there is no flag "--qqqqqqqqqqqqqq"; see --help` + "\n"},
		{"no value", []string{"--server"}, nil, 2, "", "culvert-client: --server needs a value; see --help\n"},
		{"no value of a letter", []string{"-L"}, nil, 2, "", "culvert-client: -L needs a value; see --help\n"},
		{"alien letter", []string{"-X"}, nil, 2, "", `culvert-client: there is no flag "-X"; see --help` + "\n"},
		{"argument", []string{"5432:db:5432"}, nil, 2, "", `culvert-client: unexpected argument "5432:db:5432"; see --help` + "\n"},
		{"failure", nil, errors.New("it\nbroke\x1b[2J"), 1, "", "culvert-client: it; broke [2J\n"},
		{"problems", nil, config.Problems{{Key: "--a", What: "is bad", Hint: "mend it"}, {File: "f", Line: 3, Key: "b", What: "is worse"}}, 2, "",
			"culvert-client: --a: is bad; mend it\nculvert-client: f:3: b: is worse\n"},
		{"command", []string{"sub", "-L", "1:h:1", "--once", "--local", "2:h:2"}, nil, 0, "sub once=true local=[1:h:1 2:h:2]", ""},
		{"command's help", []string{"sub", "-h"}, nil, 0, "--once\n      do it once", ""},
		{"command's typo", []string{"sub", "--onc"}, nil, 2, "", `culvert-client: there is no flag "--onc"; did you mean --once?` + "\n"},
		{"flags before a command", []string{"-L", "1:h:1", "sub", "-L", "2:h:2"}, nil, 0, "sub once=false local=[1:h:1 2:h:2]", ""},
		{"flags before a command without them", []string{"-L", "1:h:1", "group", "echo", "a"}, nil, 2, "", "culvert-client: -L: echo does not take it; leave it out\n"},
		{"misspelt command", []string{"sbu"}, nil, 2, "", `culvert-client: unexpected argument "sbu"; did you mean culvert-client sub?` + "\n"},
		{"group", []string{"group", "echo", "a", "--b"}, nil, 0, `["a" "--b"]`, ""},
		{"group's help", []string{"group", "--help"}, nil, 0, "culvert-client group: commands\n\nUsage:\n       culvert-client group echo [flags] WORD...   say it\n", ""},
		{"help in a group", []string{"group", "echo", "--help"}, nil, 0, "Usage: culvert-client group echo [flags] WORD...\n", ""},
		{"group alone", []string{"group"}, nil, 2, "", "culvert-client: group needs a command: echo; see group --help\n"},
		{"typo in a group", []string{"group", "ecko"}, nil, 2, "", `culvert-client: there is no command "group ecko"; did you mean group echo?` + "\n"},
		{"alien in a group", []string{"group", "qqqqqqq"}, nil, 2, "", `culvert-client: there is no command "group qqqqqqq"; see group --help` + "\n"},
		{"command's letter without a value", []string{"sub", "-R"}, nil, 2, "", "culvert-client: -R needs a value; see --help\n"},
		{"command's alien letter", []string{"sub", "-X"}, nil, 2, "", `culvert-client: there is no flag "-X"; see --help` + "\n"},
		{"command's alien letters", []string{"sub", "-Nv"}, nil, 2, "", `culvert-client: there is no flag "--Nv"; see --help` + "\n"},
		{"command with an ignored flag", []string{"sub", "-N", "-L", "1:h:1"}, nil, 0, "sub once=false local=[1:h:1]", ""},
		{"ignored flag of a command without options", []string{"group", "echo", "-N"}, nil, 2, "", `culvert-client: there is no flag "-N"; see --help` + "\n"},
		{"command's argument", []string{"sub", "x"}, nil, 2, "", `culvert-client: unexpected argument "x"; see sub --help` + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, stdout, stderr, code := start(t, tt.err, tt.args...)
			if code != tt.code || !strings.Contains(stdout, tt.stdout) || (tt.stdout == "") != (stdout == "") {
				t.Errorf("exit code %d, want %d; stdout:\n%s", code, tt.code, stdout)
			}
			if !strings.HasSuffix(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
				t.Errorf("stderr is %q, want %q", stderr, tt.stderr)
			}
		})
	}
}

func TestHelpHasEverything(t *testing.T) {
	_, stdout, _, _ := start(t, nil, "--help")
	for _, o := range config.ClientOptions() {
		for _, want := range []string{o.Flag() + "\n", o.Help, "[" + o.Env() + "]"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%q is not in the help", want)
			}
		}
	}
	if !strings.Contains(stdout, "culvert-client sub [flags]   a command") {
		t.Error("the command is not in the help")
	}
}

// scripted is a job that says when it is told to stop, and stops when it is let.
type scripted struct {
	stopping, letGo chan struct{}
	err             error
}

func (s *scripted) run(ctx context.Context) error {
	<-ctx.Done()
	close(s.stopping)
	<-s.letGo
	return s.err
}

func TestSignals(t *testing.T) {
	failure := errors.New("failed while stopping")
	tests := []struct {
		name  string
		later []time.Duration // when more signals come, after the first
		err   error
		want  error
		log   []string
	}{
		{"graceful", nil, nil, nil, []string{"msg=stopping signal=interrupt", "another signal, a second later or more, ends at once"}},
		{"failing", nil, failure, failure, nil},
		{"sent twice", []time.Duration{0, time.Millisecond, 999 * time.Millisecond}, nil, nil, []string{"msg=stopping"}},
		{"impatient", []time.Duration{time.Second}, nil, errSecondSignal, []string{"msg=stopping", `msg="ending at once" signal=terminated`}},
		{"twice, and impatient", []time.Duration{0, time.Minute}, nil, errSecondSignal, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var log strings.Builder
				s := &scripted{stopping: make(chan struct{}), letGo: make(chan struct{}), err: tt.err}
				job := &Job{Run: s.run, Log: NewLogger(&log, "text", 0)}
				signals, ended := make(chan os.Signal, 2), make(chan error, 1)
				go func() { ended <- job.supervise(t.Context(), signals) }()
				signals <- os.Interrupt
				<-s.stopping
				first := time.Now()
				for _, after := range tt.later {
					time.Sleep(time.Until(first.Add(after)))
					signals <- syscall.SIGTERM
				}
				synctest.Wait()
				close(s.letGo) // too late if it has ended at once
				if err := <-ended; !errors.Is(err, tt.want) {
					t.Errorf("error is %v, want %v", err, tt.want)
				}
				for _, want := range tt.log {
					if !strings.Contains(log.String(), want) {
						t.Errorf("%q is not in the log:\n%s", want, &log)
					}
				}
			})
		})
	}
	if code, _ := judge(errSecondSignal); code != exitFailed {
		t.Errorf("exit code after a second signal is %d, want %d", code, exitFailed)
	}
}
