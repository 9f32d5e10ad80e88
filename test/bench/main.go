//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if isRelay() {
		err = relay(os.Args[2], os.Args[3])
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	rounds int
	window time.Duration
	builds string
	others bool
	quick  bool
	only   *regexp.Regexp
}

func parse(args []string) (options, error) {
	var o options
	var only string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 3, "how often each contender has its turn")
	flags.DurationVar(&o.window, "window", 2*time.Second, "how long each load is measured")
	flags.StringVar(&o.builds, "builds", "", "compare the builds of culvert in these `folders`, with commas between; nothing else is measured unless -others is given")
	flags.BoolVar(&o.others, "others", false, "with -builds: measure this checkout, the relays and the other programs too")
	flags.BoolVar(&o.quick, "quick", false, "only the loads that show most changes, for a comparison that takes a few minutes")
	flags.StringVar(&only, "only", "", "only the loads whose name matches this regular `expression`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	var err error
	o.only, err = regexp.Compile(only)
	switch {
	case err != nil:
		return o, fmt.Errorf("-only: %w", err)
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.rounds < 1:
		return o, fmt.Errorf("-rounds %d: at least 1 is needed", o.rounds)
	case o.others && o.builds == "":
		return o, errors.New("-others needs -builds")
	}
	return o, nil
}

// loads returns the loads to measure.
func (o options) loads() ([]load, error) {
	var chosen []load
	for _, l := range loads {
		if o.only.MatchString(l.name) && (l.quick || !o.quick) {
			chosen = append(chosen, l)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no load matches -only %q", o.only)
	}
	return chosen, nil
}

// contenders returns who is measured. dir takes what has to be built.
func (o options) contenders(dir string) ([]contender, error) {
	if o.builds == "" {
		return usual(dir)
	}
	all, err := builds(o.builds)
	if err != nil || !o.others {
		return all, err
	}
	others, err := usual(dir)
	return append(all, others...), err
}

// run does what args say and writes the table to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	loads, err := o.loads()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "culvert-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	contenders, err := o.contenders(dir)
	if err != nil {
		return err
	}
	target, err := listenTarget()
	if err != nil {
		return err
	}
	defer target.close()

	t := newTable(contenders)
	t.ratios = o.builds != ""
	for _, l := range loads {
		for round := range o.rounds {
			for _, c := range turns(contenders, round) {
				if l.culvertOnly && !c.culvert {
					continue
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				fmt.Fprintf(os.Stderr, "%s, round %d of %d: %s\n", l.name, round+1, o.rounds, c.name)
				results, err := measure(ctx, l, c, dir, target, o.window)
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s: %s: %v\n", l.name, c.name, err)
				}
				for _, r := range results {
					t.add(l, r, c.name)
				}
			}
		}
	}
	t.print(out)
	t.compare(out)
	fmt.Fprintf(out, "\n%s, %s, %d cores, %s/%s; `go run ./test/bench %s`\n", time.Now().Format(time.DateOnly),
		cpuModel(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, strings.Join(args, " "))
	return nil
}

// turns returns the contenders in the order of a round. Each round begins with another one, so that a
// machine that gets slower or faster during the rounds favours nobody.
func turns(all []contender, round int) []contender {
	first := round % len(all)
	return append(slices.Clone(all[first:]), all[:first]...)
}

// measure starts a contender, puts one load on it and ends it.
func measure(ctx context.Context, l load, c contender, dir string, target *target, window time.Duration) ([]result, error) {
	e := &env{load: l, target: target, window: window, agents: &agents{dir: dir}}
	defer e.close()
	var err error
	if e.entrance, err = c.start(e); err != nil {
		return nil, err
	}
	if err := e.ready(ctx); err != nil {
		return nil, err
	}
	results, err := l.run(e)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, e.agents.said())
	}
	return results, err
}

// result is one figure of a load.
type result struct {
	name  string // with its unit
	value float64
}

// table gathers results: a row for each figure, a column for each contender.
type table struct {
	columns []string
	rows    []string
	values  map[[2]string][]float64 // by row and column
	ratios  bool                    // the other columns have their ratio to the first one
}

func newTable(cs []contender) *table {
	t := &table{values: map[[2]string][]float64{}}
	for _, c := range cs {
		t.columns = append(t.columns, c.name)
	}
	return t
}

func (t *table) add(l load, r result, column string) {
	row := l.name + ": " + r.name
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	t.values[[2]string{row, column}] = append(t.values[[2]string{row, column}], r.value)
}

func (t *table) print(out io.Writer) {
	fmt.Fprintf(out, "| | %s |\n|---|%s\n", strings.Join(t.columns, " | "), strings.Repeat("---|", len(t.columns)))
	for _, row := range t.rows {
		fmt.Fprintf(out, "| %s |", row)
		for _, column := range t.columns {
			fmt.Fprintf(out, " %s%s |", cell(t.values[[2]string{row, column}]), t.ratio(row, column))
		}
		fmt.Fprintln(out)
	}
}

// ratio returns the median of a cell divided by that of the row's first cell, as text; "" where there is
// nothing to compare.
func (t *table) ratio(row, column string) string {
	first := t.columns[0]
	theirs, ours := t.values[[2]string{row, first}], t.values[[2]string{row, column}]
	if !t.ratios || column == first || len(theirs) == 0 || len(ours) == 0 || median(theirs) == 0 {
		return ""
	}
	return fmt.Sprintf(" ×%.2f", median(ours)/median(theirs))
}

// compare says of each rate of a load that is to be compared with another what part it is of that one's.
func (t *table) compare(out io.Writer) {
	for _, l := range loads {
		for _, row := range t.rows {
			name, ok := strings.CutPrefix(row, l.name+": ")
			if l.like == "" || !ok || !strings.HasSuffix(row, "/s") {
				continue
			}
			for _, column := range t.columns {
				ours, theirs := t.values[[2]string{row, column}], t.values[[2]string{l.like + ": " + name, column}]
				if len(ours) > 0 && len(theirs) > 0 {
					fmt.Fprintf(out, "\n%s, %s: %.2f of %s", column, row, median(ours)/median(theirs), l.like)
				}
			}
		}
	}
	fmt.Fprintln(out)
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// cell is the median of values and their range.
func cell(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	middle, n := median(values), len(values)
	if n == 1 {
		return figure(middle)
	}
	return fmt.Sprintf("%s (%s-%s)", figure(middle), figure(values[0]), figure(values[n-1]))
}

func figure(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(text); m != nil {
		return string(m[1])
	}
	return "unknown processor"
}
