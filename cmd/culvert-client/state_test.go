package main

import (
	"log/slog"
	"path/filepath"
	"testing"

	"culvert/config"
)

func TestStateFile(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	t.Setenv("XDG_CACHE_HOME", "/cache") // on Linux
	t.Setenv("HOME", "/home/me")
	for given, want := range map[string]string{"none": "", "/x/y.json": "/x/y.json"} {
		if got := stateFile(&config.Client{StateFile: given}, log); got != want {
			t.Errorf("%s: %q", given, got)
		}
	}
	if got := stateFile(&config.Client{}, log); filepath.Base(got) != "paths.json" || !filepath.IsAbs(got) {
		t.Errorf("the default is %q", got)
	}
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	t.Setenv("LocalAppData", "")
	if got := stateFile(&config.Client{}, log); got != "" {
		t.Errorf("without a folder for caches: %q", got)
	}
}
