//go:build linux

package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"culvert/test/agent"
)

// The relays are processes of the program under test.
func TestMain(m *testing.M) {
	if isRelay() {
		panic(relay(os.Args[2], os.Args[3]))
	}
	m.Run()
}

// A short run has figures for culvert and for the relays.
func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-rounds", "1", "-window", "100ms", "-only", "^bulk, 1 stream|64-byte|idle"}, &out); err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	for _, row := range []string{
		"bulk, 1 stream: down, MB/s", "bulk, 1 stream: up, MB/s", "64-byte echo: p50, µs", "64-byte echo: p99, µs",
		"1,000 idle connections: KiB each, both agents",
	} {
		figures := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(row) + ` \| ([\d.]+) \| ([\d.]+) `).FindSubmatch(out.Bytes())
		if figures == nil {
			t.Errorf("no row %q for culvert and the relays", row)
			continue
		}
		for _, f := range figures[1:] {
			if v, err := strconv.ParseFloat(string(f), 64); err != nil || v <= 0 {
				t.Errorf("row %q: %q", row, f)
			}
		}
	}
}

// Builds are measured in the same run, with their ratio to the first one.
func TestBuilds(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	if _, err := agent.Build(first, false); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(second, os.DirFS(first)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	args := []string{"-builds", first + "," + second, "-rounds", "2", "-window", "100ms", "-quick", "-only", "^64-byte"}
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	t.Log(out.String())
	for _, line := range []string{
		`\| \| ` + regexp.QuoteMeta(first) + ` \| ` + regexp.QuoteMeta(second) + ` \|`,
		`\| 64-byte echo: p50, µs \| [\d.]+ \([\d.]+-[\d.]+\) \| [\d.]+ \([\d.]+-[\d.]+\) ×\d+\.\d\d \|`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).Match(out.Bytes()) {
			t.Errorf("no line %s", line)
		}
	}
}

// What cannot be measured is refused before anything is.
func TestBadArguments(t *testing.T) {
	empty := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-builds", empty}, "culvert-client"},
		{[]string{"-only", "juggling"}, `no load matches -only "juggling"`},
		{[]string{"-only", "("}, "-only: "},
		{[]string{"-rounds", "0"}, "at least 1"},
		{[]string{"-others"}, "-others needs -builds"},
		{[]string{"bulk"}, `unexpected argument "bulk"`},
	} {
		if err := run(t.Context(), tt.args, io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want %q", tt.args, err, tt.want)
		}
	}
}

// Each round begins with another contender, and each contender has one turn in it.
func TestTurns(t *testing.T) {
	all := []contender{{name: "a"}, {name: "b"}, {name: "c"}}
	for round, want := range []string{"abc", "bca", "cab", "abc"} {
		got := ""
		for _, c := range turns(all, round) {
			got += c.name
		}
		if got != want {
			t.Errorf("round %d: %s, want %s", round, got, want)
		}
	}
}

func TestCell(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   string
	}{
		{nil, ""},
		{[]float64{3}, "3.00"},
		{[]float64{30, 10, 200}, "30.0 (10.0-200)"},
		{[]float64{4, 1, 2, 3}, "2.50 (1.00-4.00)"},
	} {
		if got := cell(tt.values); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.values, got, tt.want)
		}
	}
	tb := newTable([]contender{{name: "a"}, {name: "b"}})
	tb.add(load{name: "x"}, result{"MB/s", 1}, "b")
	var out bytes.Buffer
	tb.print(&out)
	if want := "| | a | b |\n|---|---|---|\n| x: MB/s |  | 1.00 |\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	tb.ratios = true
	tb.add(load{name: "x"}, result{"MB/s", 2}, "a")
	out.Reset()
	tb.print(&out)
	if want := "| | a | b |\n|---|---|---|\n| x: MB/s | 2.00 | 1.00 ×0.50 |\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
