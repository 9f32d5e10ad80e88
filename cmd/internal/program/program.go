package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"culvert/config"
)

// Program is one binary.
type Program struct {
	Name    string
	Summary string // one line for --help
	Options []config.Option
	Ignored []string // flags without a value that change nothing, which users of other programs type
	// Prepare makes the job from what the user said. It starts nothing.
	Prepare func(src config.Sources, stderr io.Writer) (*Job, error)
	// Commands are what the binary can do besides its job.
	Commands []*Command
}

// Job is an agent that is ready to run.
type Job struct {
	// Run does everything and returns when all of it has ended. The end of its
	// context is a graceful stop, for which it returns nil.
	Run      func(ctx context.Context) error
	Log      *slog.Logger
	Warnings []string // logged before Run
	// Memory is what Run may buffer, in bytes. The garbage collector is told to keep
	// the process within that and 96 MiB, unless GOMEMLIMIT says something else.
	Memory int64
	// Reload changes what Run does to what the user says now, at SIGHUP and after
	// one of Files has changed; nil: nothing can change, and SIGHUP ends the
	// process. It is called while Run runs.
	Reload *Reload
	// Close is called last, when Run and Reload have ended; nil: nothing is left.
	Close func()
}

// Command is a subcommand with flags of its own.
type Command struct {
	Name      string
	Summary   string    // one line for --help
	Arguments string    // how its arguments are written, for --help; "" for none
	Args      *[]string // takes the arguments; nil: there are none
	Flags     []cli.Flag
	Options   []config.Option // taken beside Flags; from the environment and the file, too
	Prepare   func(src config.Sources, stdout, stderr io.Writer) (*Job, error)
	// Commands are below this one, which then does nothing itself: it has no Prepare.
	Commands []*Command
}

// Run runs the command line args, whose first element is the program's name, and
// returns the exit code. What a user asked for goes to stdout, log and errors go to
// stderr. Run returns when the job has ended or a second signal has come.
//
// A log that cannot be written ends nothing. A command whose output cannot be
// written stops and fails.
func (p Program) Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	defer surviveBrokenPipes()()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	out := &output{w: stdout, failed: stop}
	err := p.app(out, stderr).RunContext(ctx, p.usual(args))
	if lost := out.error(); lost != nil {
		if errors.Is(lost, syscall.EPIPE) {
			return exitFailed // the reader, such as head, has seen enough
		}
		err = lost
	}
	return p.report(stderr, err)
}

// app is the command line as the library has it.
func (p Program) app(stdout, stderr io.Writer) *cli.App {
	options, given := flagsOf(p.Options)
	var version bool
	app := &cli.App{
		Name: p.Name, Writer: stdout, ErrWriter: stderr,
		// The library's help and version flags are shared variables; its text
		// of help does not know the environment and the file.
		HideHelp: true, HideVersion: true, CustomAppHelpTemplate: p.help(),
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   p.usageError,
		Action: func(c *cli.Context) error {
			switch {
			case version:
				return printVersion(stdout, p.Name)
			case c.Args().Present():
				return p.unexpected(c.Args().First())
			}
			job, err := p.Prepare(given(), stderr)
			if err != nil {
				return err
			}
			return job.run(c.Context)
		},
	}
	app.Flags = append(options,
		helpFlag(), &cli.BoolFlag{Name: "version", Destination: &version})
	app.Flags = append(app.Flags, p.ignored()...)
	for _, command := range p.Commands {
		app.Commands = append(app.Commands, command.command(p, command.Name, given, stdout, stderr))
	}
	return app
}

// unexpected is what there is to say of a word that is no command of the program.
func (p Program) unexpected(word string) error {
	hint := "see --help"
	if near := nearest(word, p.Commands); near != "" {
		hint = "did you mean " + p.Name + " " + near + "?"
	}
	return &usageError{fmt.Sprintf("unexpected argument %q", word), hint}
}

// nearest is the command whose name a misspelt word comes closest to, or "".
func nearest(word string, commands []*Command) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return config.Nearest(word, names)
}

// ignored are the flags that change nothing.
func (p Program) ignored() (flags []cli.Flag) {
	for _, name := range p.Ignored {
		flags = append(flags, &cli.BoolFlag{Name: name})
	}
	return flags
}

// flagsOf are the flags of options, and given what was given with them.
func flagsOf(options []config.Option) (flags []cli.Flag, given func() config.Sources) {
	values := make([]texts, len(options))
	for i, o := range options {
		all := &values[i]
		flags = append(flags, &cli.GenericFlag{Name: o.Name, Value: &spelling{all, "--" + o.Name, o.Kind() == config.KindBool, ""}})
		// Flags of their own and no aliases: the library refuses both forms at once,
		// and copies the value of one to the other.
		if o.Short != "" {
			flags = append(flags, &cli.GenericFlag{Name: o.Short, Value: &spelling{all, "-" + o.Short, false, ""}})
		}
		if o.Switch != "" {
			flags = append(flags, &cli.GenericFlag{Name: o.Switch, Value: &spelling{all, "-" + o.Switch, true, o.SwitchTo}})
		}
	}
	return flags, func() config.Sources {
		src := config.Sources{Flags: make(map[string][]string), Typed: make(map[string][]string), LookupEnv: os.LookupEnv}
		for i, o := range options {
			src.Flags[o.Name], src.Typed[o.Name] = values[i].given, values[i].typed
		}
		return src
	}
}

// before adds the flags that were given in front of a command to its own.
func (cmd *Command) before(src, before config.Sources) (config.Sources, error) {
	for name, values := range before.Flags {
		if len(values) == 0 {
			continue
		}
		if !slices.ContainsFunc(cmd.Options, func(o config.Option) bool { return o.Name == name }) {
			return src, &usageError{fmt.Sprintf("%s: %s does not take it", before.Typed[name][0], cmd.Name), "leave it out"}
		}
		src.Flags[name] = append(values, src.Flags[name]...)
		src.Typed[name] = append(before.Typed[name], src.Typed[name]...)
	}
	return src, nil
}

// command is cmd as the library has it. path is what a user types after the name of p, and
// before returns the flags that stand in front of it.
func (cmd *Command) command(p Program, path string, before func() config.Sources, stdout, stderr io.Writer) *cli.Command {
	own := append(cmd.Flags[:len(cmd.Flags):len(cmd.Flags)], helpFlag())
	options, given := flagsOf(cmd.Options)
	flags := append(options, own...)
	if len(cmd.Options) > 0 {
		flags = append(flags, p.ignored()...)
	}
	c := &cli.Command{
		Name: cmd.Name, Flags: flags, HideHelp: true, CustomHelpTemplate: cmd.help(p.Name, path, own),
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			var names []string
			for _, f := range flags {
				names = append(names, f.Names()...)
			}
			return flagError(err, names)
		},
		Action: func(c *cli.Context) error {
			switch {
			case cmd.Prepare == nil:
				return cmd.missing(path, c.Args().First())
			case cmd.Args != nil:
				*cmd.Args = c.Args().Slice()
			case c.Args().Present():
				return &usageError{fmt.Sprintf("unexpected argument %q", c.Args().First()), "see " + path + " --help"}
			}
			src, err := cmd.before(given(), before())
			if err != nil {
				return err
			}
			job, err := cmd.Prepare(src, stdout, stderr)
			if err != nil {
				return err
			}
			return job.run(c.Context)
		},
	}
	for _, sub := range cmd.Commands {
		c.Subcommands = append(c.Subcommands, sub.command(p, path+" "+sub.Name, before, stdout, stderr))
	}
	return c
}

// missing is what there is to say of a word that is none of the commands below cmd.
func (cmd *Command) missing(path, word string) error {
	switch near := nearest(word, cmd.Commands); {
	case word == "":
		var names []string
		for _, sub := range cmd.Commands {
			names = append(names, sub.Name)
		}
		return &usageError{path + " needs a command: " + strings.Join(names, ", "), "see " + path + " --help"}
	case near != "":
		return &usageError{fmt.Sprintf("there is no command %q", path+" "+word), "did you mean " + path + " " + near + "?"}
	default:
		return &usageError{fmt.Sprintf("there is no command %q", path+" "+word), "see " + path + " --help"}
	}
}

// helpFlag is a flag that the library knows by its names.
func helpFlag() cli.Flag {
	return &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show this help", DisableDefaultText: true}
}

// run runs the job under the process's signals.
func (j *Job) run(ctx context.Context) error {
	if j.Close != nil {
		defer j.Close()
	}
	for _, warning := range j.Warnings {
		j.Log.Warn(warning)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if j.Reload != nil {
		ctx, end := context.WithCancel(ctx)
		var reloading sync.WaitGroup
		defer reloading.Wait()
		defer end()
		hangup := make(chan os.Signal, 1)
		signal.Notify(hangup, syscall.SIGHUP) // never comes on Windows
		defer signal.Stop(hangup)
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		files := inUse(j.Reload.Files())
		reloading.Go(func() { j.Reload.run(ctx, j.Log, files, j.Warnings, hangup, ticker.C) })
	}
	defer j.limitMemory()()
	return j.supervise(ctx, signals)
}

// runtimeMemory is what an agent takes beside its buffers: itself, its goroutines, and what
// they have left to collect.
const runtimeMemory = 96 << 20

// limitMemory has the garbage collector keep to the job's memory, until restore is called.
func (j *Job) limitMemory() (restore func()) {
	if j.Memory <= 0 || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	before := debug.SetMemoryLimit(j.Memory + runtimeMemory)
	return func() { debug.SetMemoryLimit(before) }
}

// secondSignalAfter is how long after the first signal another one counts. Some
// senders, such as GNU timeout, signal twice within milliseconds and mean it once.
const secondSignalAfter = time.Second

// supervise runs the job until it ends. The first signal ends its context. Another
// one ends the wait for the job, if it comes after secondSignalAfter.
func (j *Job) supervise(ctx context.Context, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	var first time.Time
	for {
		select {
		case err := <-ended:
			return err
		case s := <-signals:
			switch {
			case first.IsZero():
				first = time.Now()
				j.Log.Info("stopping", "signal", s.String(), "note", "another signal, a second later or more, ends at once")
				cancel()
			case time.Since(first) >= secondSignalAfter:
				j.Log.Warn("ending at once", "signal", s.String())
				return errSecondSignal
			}
		}
	}
}

// texts are all values that a flag was given, as they are: what they mean is for config
// to say, about all of them at once. (The library's own lists would split them at commas,
// which a header's value may have.)
type texts struct {
	given []string
	typed []string // how the flag was written for each
}

// spelling is a flag.Value, for one of the ways to write a flag.
type spelling struct {
	*texts
	as       string
	switches bool   // needs no value
	to       string // the value that it stands for then, "" for its own: true or false
}

// Set adds a value.
func (s *spelling) Set(value string) error {
	if s.to != "" {
		if on, err := strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%q is not true or false", value)
		} else if !on {
			return nil
		}
		value = s.to
	}
	s.given, s.typed = append(s.given, value), append(s.typed, s.as)
	return nil
}

// String is for the flag package, which calls it on a zero value, too.
func (s *spelling) String() string {
	if s == nil || s.texts == nil {
		return ""
	}
	return strings.Join(s.given, " ")
}

// IsBoolFlag tells the flag package whether --flag alone means --flag=true.
func (s *spelling) IsBoolFlag() bool { return s.switches }
