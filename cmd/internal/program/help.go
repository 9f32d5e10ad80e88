package program

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
)

// help is the page of --help, made from the table of options. It is a template for
// the library, with nothing to fill in.
func (p Program) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage: %s [flags]\n", p.Name, p.Summary, p.Name)
	usages(&b, p.Name, p.Commands)
	fmt.Fprintf(&b, "       %s help [COMMAND]   show help\n       %s version   show the version\n", p.Name, p.Name)
	b.WriteString("\nFlags, each with its environment variable; --config has them without the dashes:\n")
	for _, o := range p.Options {
		b.WriteString("  ")
		if o.Switch != "" {
			fmt.Fprintf(&b, "-%s, ", o.Switch)
		}
		fmt.Fprintf(&b, "%s\n      %s", o.Flag(), o.Help)
		if o.Default != "" {
			fmt.Fprintf(&b, " (default %s)", o.Default)
		}
		fmt.Fprintf(&b, " [%s]\n", o.Env())
	}
	for _, name := range p.Ignored {
		fmt.Fprintf(&b, "  -%s\n      accepted for people who are used to ssh, and changes nothing\n", name)
	}
	b.WriteString("  -h, --help\n      show this help\n  --version\n      show the version\n")
	b.WriteString("\nA flag is stronger than the environment, the environment than the file.\n")
	fmt.Fprintf(&b, "Exit codes: %d stopped cleanly, %d failed, %d wrong usage or configuration,\n%d refused (trying again will not help).\n",
		exitOK, exitFailed, exitUsage, exitRefused)
	return b.String()
}

// usages writes one line for each command at the end of the tree.
func usages(b *strings.Builder, program string, commands []*Command) {
	for _, cmd := range commands {
		if cmd.Prepare != nil {
			fmt.Fprintf(b, "       %s   %s\n", cmd.usage(program+" "+cmd.Name), cmd.Summary)
		}
		usages(b, program+" "+cmd.Name, cmd.Commands)
	}
}

// usage is how cmd is called.
func (cmd *Command) usage(called string) string {
	return strings.TrimSpace(called + " [flags] " + cmd.Arguments)
}

func (cmd *Command) help(program, path string, flags []cli.Flag) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s\n\n", program, path, cmd.Summary)
	if cmd.Prepare == nil {
		b.WriteString("Usage:\n")
		usages(&b, program+" "+path, cmd.Commands)
	} else {
		fmt.Fprintf(&b, "Usage: %s\n", cmd.usage(program+" "+path))
	}
	b.WriteString("\n")
	for _, f := range flags {
		names, usage, _ := strings.Cut(f.String(), "\t")
		fmt.Fprintf(&b, "  %s\n      %s\n", names, usage)
	}
	if len(cmd.Options) > 0 {
		fmt.Fprintf(&b, "\nIt also takes the flags of %s itself, their environment variables and its file.\n", program)
	}
	return b.String()
}

// printVersion prints what the build says of itself.
func printVersion(w io.Writer, name string) error {
	version, revision := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = ", revision " + s.Value
			}
		}
	}
	_, err := fmt.Fprintf(w, "%s %s (%s %s/%s%s)\n", name, version, runtime.Version(), runtime.GOOS, runtime.GOARCH, revision)
	return err
}
