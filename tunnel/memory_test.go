package tunnel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMemory(t *testing.T) {
	m := memory{filepath.Join(t.TempDir(), "below", "paths.json")}
	if f, err := m.load("a:1", epoch); err != nil || f != (facts{}) {
		t.Errorf("of no file: %+v, %v", f, err)
	}
	known := facts{Idle: 5 * time.Second, IdleExact: true, IdleAt: epoch, Age: time.Minute, AgeAt: epoch}
	if err := m.store("a:1", known, epoch); err != nil {
		t.Fatal(err)
	}
	if err := m.store("b:2", facts{Age: time.Hour, AgeAt: epoch.Add(24 * time.Hour)}, epoch); err != nil {
		t.Fatal(err)
	}
	if f, err := m.load("a:1", epoch); err != nil || f != known {
		t.Errorf("%+v, %v; want %+v", f, err, known)
	}
	if info, err := os.Stat(m.file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(m.file)); len(entries) != 1 {
		t.Errorf("%d files, want one", len(entries))
	}

	later := epoch.Add(factsExpire + time.Hour)
	if f, err := m.load("a:1", later); err != nil || f != (facts{}) {
		t.Errorf("after its time: %+v, %v", f, err)
	}
	if err := m.store("c:3", known, later); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(m.file); strings.Contains(string(text), "a:1") || !strings.Contains(string(text), "b:2") {
		t.Errorf("what expired is to be dropped, and nothing else:\n%s", text)
	}
}

// What is not such a file is ignored, and replaced in the end.
func TestMemoryOfSomethingElse(t *testing.T) {
	for name, text := range map[string]string{
		"empty":   "",
		"text":    "hello",
		"cut":     `{"Version":2,"Servers":{"a:1":{"Idle":5`,
		"version": `{"Version":3,"Servers":{"a:1":{"Idle":5000000000,"IdleAt":"2026-11-23T00:00:00Z"}}}`,
		"none":    `{"Servers":{"a:1":{"Idle":5000000000,"IdleAt":"2026-11-23T00:00:00Z"}}}`,
		"types":   `{"Version":2,"Servers":[1,2]}`,
		"long":    `{"Version":2}` + strings.Repeat(" ", maxMemory),
	} {
		m := memory{filepath.Join(t.TempDir(), name)}
		if err := os.WriteFile(m.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := m.load("a:1", epoch); !errors.Is(err, errMemory) || f != (facts{}) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		if err := m.store("a:1", facts{Age: time.Minute, AgeAt: epoch}, epoch); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if f, err := m.load("a:1", epoch); err != nil || f.Age != time.Minute {
			t.Errorf("%s: then %+v, %v", name, f, err)
		}
	}
	m := memory{filepath.Join(t.TempDir(), "odd")}
	odd := `{"Version":2,"Servers":{"a:1":{"Age":1,"AgeAt":"2026-11-23T00:00:00Z"},"b:2":{"Idle":-1,"IdleAt":"2026-11-23T00:00:00Z"},"c:3":{"Age":60000000000,"AgeAt":"9026-11-23T00:00:00Z"},"d:4":{"Age":9000000000000000000,"AgeAt":"2026-11-23T00:00:00Z"}}}`
	if err := os.WriteFile(m.file, []byte(odd), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"a:1", "b:2", "c:3", "d:4"} {
		if f, err := m.load(server, epoch); err != nil || f != (facts{}) {
			t.Errorf("%s: %+v, %v", server, f, err)
		}
	}
}

// What earlier versions learned is forgotten without a word.
func TestMemoryOfAnEarlierVersion(t *testing.T) {
	m := memory{filepath.Join(t.TempDir(), "paths.json")}
	for _, text := range []string{
		`{"Version":1,"Servers":{"a:1":{"Idle":1600000000,"IdleExact":true,"IdleAt":"2026-11-23T00:00:00Z"}}}`,
		`{"Version":1,"Servers":"in another format"}`,
	} {
		if err := os.WriteFile(m.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := m.load("a:1", epoch); err != nil || f != (facts{}) {
			t.Errorf("%+v, %v", f, err)
		}
	}
	if err := m.store("b:2", facts{Age: time.Minute, AgeAt: epoch}, epoch); err != nil {
		t.Fatal(err)
	}
	if f, err := m.load("b:2", epoch); err != nil || f.Age != time.Minute {
		t.Errorf("then %+v, %v", f, err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := memory{filepath.Join(t.TempDir(), "paths.json")}
	for i := range 2 * maxServers {
		if err := m.store(fmt.Sprintf("%d:1", i), facts{Age: time.Minute, AgeAt: epoch.Add(time.Duration(i))}, epoch); err != nil {
			t.Fatal(err)
		}
	}
	all, err := m.read(epoch)
	if err != nil || len(all.Servers) != maxServers {
		t.Errorf("%d servers, %v", len(all.Servers), err)
	}
	if _, newest := all.Servers[fmt.Sprintf("%d:1", 2*maxServers-1)]; !newest {
		t.Error("the newest was dropped")
	}
	if info, err := os.Stat(m.file); err != nil || info.Size() > maxMemory {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}

// Clients that write at the same time leave a whole file behind.
func TestMemoryIsShared(t *testing.T) {
	m := memory{filepath.Join(t.TempDir(), "paths.json")}
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for range 50 {
				if err := m.store(fmt.Sprintf("%d:1", i), facts{Age: time.Minute, AgeAt: epoch}, epoch); err != nil {
					t.Error(err)
				}
				if _, err := m.read(epoch); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	if entries, _ := os.ReadDir(filepath.Dir(m.file)); len(entries) != 1 {
		t.Errorf("%d files, want one", len(entries))
	}
}
