package program

import (
	"slices"
	"strings"

	"culvert/config"
)

// usual returns args as the flag package reads them, of which it does not know all that
// people are used to: "-L5432:db:5432" for "-L 5432:db:5432", as ssh takes it, "help" and
// "help COMMAND" for --help, and "version" for --version.
func (p Program) usual(args []string) []string {
	if len(args) < 2 {
		return args
	}
	switch args[1] {
	case "help":
		return append(append(args[:1:1], args[2:]...), "--help")
	case "version":
		return append(append(args[:1:1], "--version"), args[2:]...)
	}
	usual := args[:1:1]
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(usual, args[i:]...)
		}
		o := p.option(arg)
		switch {
		case o == nil:
			usual = append(usual, arg)
		case o.Short != "" && strings.HasPrefix(arg, "-"+o.Short) && len(arg) > len("-"+o.Short) && !strings.HasPrefix(arg, "-"+o.Short+"="):
			usual = append(usual, arg[:2], arg[2:])
		default:
			usual = append(usual, arg)
			if !strings.Contains(arg, "=") && o.Kind() != config.KindBool && i+1 < len(args) { // what follows is its value
				i++
				usual = append(usual, args[i])
			}
		}
	}
	return usual
}

// option is the option that arg is a flag of, nil if it is none.
func (p Program) option(arg string) *config.Option {
	name, dashed := strings.CutPrefix(arg, "-")
	if !dashed {
		return nil
	}
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "-"), "=")
	i := slices.IndexFunc(p.Options, func(o config.Option) bool {
		return o.Name == name || o.Short != "" && strings.HasPrefix(arg, "-"+o.Short)
	})
	if i < 0 {
		return nil
	}
	return &p.Options[i]
}
