package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/test/bubble"
)

// cheap is a password that takes no work.
func cheap(t *testing.T, password string, c cost) Password {
	t.Helper()
	p, err := ParsePassword(fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", c.memory, c.passes, c.threads,
		phcEncoding.EncodeToString([]byte("saltsalt")), phcEncoding.EncodeToString(derive([]byte(password), []byte("saltsalt"), c))))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	light  = cost{memory: 8, passes: 1, threads: 1, length: 32}
	middle = cost{memory: 16, passes: 1, threads: 1, length: 32}
)

func TestHashPassword(t *testing.T) {
	text := HashPassword("open sesame")
	p, err := ParsePassword(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if p.cost != usual || string(derive([]byte("open sesame"), []byte(p.salt), p.cost)) != p.hash {
		t.Errorf("%q is not its hash", text)
	}
	if HashPassword("open sesame") == text {
		t.Error("the same salt twice")
	}
	checkSilent(t, fmt.Sprint(p, &p, []Password{p}), p.text, p.hash)
}

// A hash from the tests of the reference implementation.
func TestParsePasswordOfOthers(t *testing.T) {
	p, err := ParsePassword("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	if err != nil {
		t.Fatal(err)
	}
	if string(derive([]byte("password"), []byte(p.salt), p.cost)) != p.hash {
		t.Error("it is not the hash of that password")
	}
}

func TestParsePasswordErrors(t *testing.T) {
	const salt, hash = "c2FsdHNhbHQ", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, tt := range []struct{ text, want string }{
		{"", "not the argon2id hash"},
		{"open sesame", "not the argon2id hash"},
		{"$2b$12$abcdefghijklmnopqrstuv", "not the argon2id hash"},
		{"$argon2i$v=19$m=8,t=1,p=1$" + salt + "$" + hash, "not the argon2id hash"},
		{"$argon2id$v=16$m=8,t=1,p=1$" + salt + "$" + hash, "not of version 19"},
		{"$argon2id$m=8,t=1,p=1$" + salt + "$" + hash, "not the argon2id hash"},
		{"$argon2id$v=19$m=8,t=1$" + salt + "$" + hash, "three parameters"},
		{"$argon2id$v=19$t=1,m=8,p=1$" + salt + "$" + hash, "parameter m"},
		{"$argon2id$v=19$m=7,t=1,p=1$" + salt + "$" + hash, "parameter m"},
		{"$argon2id$v=19$m=1048577,t=1,p=1$" + salt + "$" + hash, "parameter m is not between 8 and 1048576"},
		{"$argon2id$v=19$m=4294967304,t=1,p=1$" + salt + "$" + hash, "parameter m"},
		{"$argon2id$v=19$m=8,t=0,p=1$" + salt + "$" + hash, "parameter t"},
		{"$argon2id$v=19$m=8,t=17,p=1$" + salt + "$" + hash, "parameter t"},
		{"$argon2id$v=19$m=8,t=1,p=0$" + salt + "$" + hash, "parameter p"},
		{"$argon2id$v=19$m=999,t=1,p=256$" + salt + "$" + hash, "parameter p"},
		{"$argon2id$v=19$m=8,t=1,p=2$" + salt + "$" + hash, "less than 8 for each thread"},
		{"$argon2id$v=19$m=8,t=1,p=1$c2FsdA$" + hash, "the salt"},
		{"$argon2id$v=19$m=8,t=1,p=1$" + salt + "=$" + hash, "the salt"},
		{"$argon2id$v=19$m=8,t=1,p=1$" + salt + "$AAAA", "the hash"},
		{"$argon2id$v=19$m=8,t=1,p=1$" + salt + "$" + strings.Repeat("A", 88), "the hash"},
	} {
		_, err := ParsePassword(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "$argon2id$v=19$m=65536,t=3,p=1$SALT$HASH") {
			t.Errorf("%q: %v, want %q and how to write it", tt.text, err, tt.want)
			continue
		}
		checkSilent(t, err.Error(), tt.text)
	}
}

func TestReadPassword(t *testing.T) {
	for _, tt := range []struct{ content, want, problem string }{
		{"# open: sesame ", "# open: sesame ", ""},
		{"sesame\n", "sesame", ""},
		{"sesame\r\n", "sesame", ""},
		{"", "", "is empty"},
		{"\n", "", "is empty"},
		{"open\nsesame\n", "", "more than one line"},
		{strings.Repeat("x", maxPasswordLength+1), "", "longer than"},
		{strings.Repeat("x", 2*maxPasswordLength), "", "larger than"},
	} {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, warnings, err := ReadPassword(path)
		if tt.problem == "" {
			if got != tt.want || len(warnings) != 0 || err != nil {
				t.Errorf("%q: %q, %q, %v", tt.content, got, warnings, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.problem) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want the path and %q", tt.content, err, tt.problem)
		} else {
			checkSilent(t, err.Error(), "sesame")
		}
	}
}

func TestPasswordsOfIdentities(t *testing.T) {
	p := cheap(t, "x", light)
	for _, tt := range []struct {
		id   Identity
		want string
	}{
		{Identity{Name: "a:b", Passwords: []Password{p}}, "colon in its name"},
		{Identity{Name: "a", Passwords: []Password{p, p, p, p, p}}, "more than 4 passwords"},
		{Identity{Name: "a", Passwords: []Password{{}}}, "empty password"},
	} {
		if _, err := NewDirectory(DirectoryConfig{Identities: []Identity{tt.id}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
	if NewGuard(directoryOf(t, Identity{Name: "a"})).TakesPasswords() || !NewGuard(directoryOf(t, Identity{Name: "a", Passwords: []Password{p}})).TakesPasswords() {
		t.Error("what is said of passwords is not so")
	}
}

// counted counts the computations of a guard, by cost.
func counted(g *Guard) (taken func() map[cost]int) {
	var mu sync.Mutex
	counts := make(map[cost]int)
	g.passwords.derive = func(password, salt []byte, c cost) []byte {
		mu.Lock()
		counts[c]++
		mu.Unlock()
		return derive(password, salt, c)
	}
	return func() map[cost]int {
		mu.Lock()
		defer mu.Unlock()
		defer func() { counts = make(map[cost]int) }()
		return counts
	}
}

// from is the n-th address.
func from(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}) }

// A wrong password is the same work for whoever it is said to be of.
func TestEqualWork(t *testing.T) {
	g := NewGuard(directoryOf(t,
		Identity{Name: "alice", Passwords: []Password{cheap(t, "of alice", light)}},
		Identity{Name: "both", Passwords: []Password{cheap(t, "old", light), cheap(t, "new", light)}},
		Identity{Name: "other", Passwords: []Password{cheap(t, "of other", middle)}},
		Identity{Name: "none"},
	))
	taken := counted(g)
	for n, user := range []string{"alice", "both", "other", "none", "nobody"} {
		for _, password := range []string{"wrong", "", strings.Repeat("x", 1000)} {
			_, err := g.Authenticate(t.Context(), Presented{Remote: from(n), User: user, Password: password})
			if got := taken(); !errors.Is(err, ErrPassword) || got[light] != 2 || got[middle] != 1 {
				t.Errorf("%s: %v after computations %v", user, err, got)
			}
		}
	}
	for _, password := range []string{"old", "new"} {
		login, err := g.Authenticate(t.Context(), Presented{User: "both", Password: password})
		if err != nil || login.Identity != "both" || login.Credential != "password" {
			t.Errorf("%s: %+v, %v", password, login, err)
		}
	}
	if _, err := g.Authenticate(t.Context(), Presented{User: "alice", Password: "of other"}); !errors.Is(err, ErrPassword) {
		t.Errorf("another's password: %v", err)
	}
}

// A password that was good takes no work again, and is not kept when it changes.
func TestKnownPassword(t *testing.T) {
	before := Identity{Name: "alice", Passwords: []Password{cheap(t, "sesame", light)}}
	g := NewGuard(directoryOf(t, before))
	taken := counted(g)
	login := func(password string) error {
		_, err := g.Authenticate(t.Context(), Presented{User: "alice", Password: password})
		return err
	}
	if err := login("sesame"); err != nil || taken()[light] != 1 {
		t.Fatal(err)
	}
	if err := login("sesame"); err != nil || taken()[light] != 0 {
		t.Errorf("again: %v, with work", err)
	}
	if err := login("sesame!"); !errors.Is(err, ErrPassword) || taken()[light] != 1 {
		t.Errorf("another: %v", err)
	}
	l, err := g.Authenticate(t.Context(), Presented{User: "alice", Password: "sesame"})
	if err != nil {
		t.Fatal(err)
	}
	var ended error
	defer g.Watch(l, func(err error) { ended = err })()
	g.Use(directoryOf(t, Identity{Name: "alice", Passwords: []Password{before.Passwords[0], cheap(t, "open", light)}}))
	if ended != nil {
		t.Errorf("beside another: %v", ended)
	}
	g.Use(directoryOf(t, Identity{Name: "alice", Passwords: []Password{cheap(t, "open", light)}}))
	if !errors.Is(ended, ErrRevoked) {
		t.Errorf("taken away: %v", ended)
	}
	if err := login("sesame"); !errors.Is(err, ErrPassword) {
		t.Errorf("after it was taken away: %v", err)
	}
}

// Many wrong passwords wait for one computation at a time, and not all of them.
func TestFloodOfPasswords(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := NewGuard(directoryOf(t, Identity{Name: "alice", Passwords: []Password{cheap(t, "sesame", light)}}))
		if _, err := g.Authenticate(t.Context(), Presented{Remote: from(0), User: "alice", Password: "sesame"}); err != nil {
			t.Fatal(err)
		}
		let := make(chan struct{})
		var mu sync.Mutex
		running, most := 0, 0
		g.passwords.derive = func(_, _ []byte, _ cost) []byte {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-let
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		}
		const addresses, each = 100, 6
		errs := make(chan error, addresses*each)
		var attempts sync.WaitGroup
		for n := range addresses {
			for range each {
				attempts.Go(func() {
					_, err := g.Authenticate(t.Context(), Presented{Remote: from(n + 1), User: "alice", Password: "wrong"})
					errs <- err
				})
			}
		}
		synctest.Wait()
		if refused := len(errs); refused != addresses*each-maxChecks {
			t.Errorf("%d are refused, want all but %d", refused, maxChecks)
		}
		// Whoever was in before is in again.
		if _, err := g.Authenticate(t.Context(), Presented{Remote: from(1), User: "alice", Password: "sesame"}); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.passwords.attempt(g.current(), "alice", "x").enter(ctx, netip.Prefix{}); err == nil {
			t.Error("one more waits")
		}
		let <- struct{}{} // one is done, the others lose patience
		attempts.Go(func() {
			time.Sleep(checkPatience + 1)
			close(let)
		})
		attempts.Wait()
		close(errs)
		counts := make(map[error]int)
		for err := range errs {
			for _, known := range []error{ErrBusy, ErrPassword} {
				if errors.Is(err, known) {
					counts[known]++
				}
			}
		}
		if most != 1 || counts[ErrPassword] != 2 || counts[ErrBusy] != addresses*each-2 {
			t.Errorf("%d at a time, %v", most, counts)
		}
	})
}

// After a wrong password as long a rest is taken as it was work; no other is looked at.
func TestRestAfterWrongPassword(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := NewGuard(directoryOf(t, Identity{Name: "alice", Passwords: []Password{cheap(t, "sesame", light)}}))
		const work = 100 * time.Millisecond
		var began []time.Duration
		start := time.Now()
		g.passwords.derive = func(password, salt []byte, c cost) []byte {
			began = append(began, time.Since(start))
			time.Sleep(work)
			return derive(password, salt, c)
		}
		var attempts sync.WaitGroup
		for n := range 3 {
			attempts.Go(func() {
				_, _ = g.Authenticate(t.Context(), Presented{Remote: from(n), User: "alice", Password: "wrong"})
			})
		}
		attempts.Wait()
		if want := []time.Duration{0, 2 * work, 4 * work}; !slices.Equal(began, want) {
			t.Errorf("begun at %v, want %v", began, want)
		}
	})
}

// One address does not take all the places.
func TestChecksOfOneAddress(t *testing.T) {
	v := newVerifier()
	key := SourceOf(from(1))
	leave, err := v.enter(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that whoever may wait does not
	v.byAddr[key] = maxChecksPerAddress
	if _, err := v.enter(ctx, key); !errors.Is(err, ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	if _, err := v.enter(ctx, SourceOf(from(2))); !errors.Is(err, context.Canceled) {
		t.Errorf("of another address: %v, want to wait", err)
	}
	leave()
}

// A password that nobody has looked at, because too many wait, is no failure of its
// address.
func TestBusyIsNoFailure(t *testing.T) {
	g := NewGuard(directoryOf(t, Identity{Name: "alice", Passwords: []Password{cheap(t, "sesame", light)}}))
	addr := from(1)
	g.passwords.byAddr[SourceOf(addr)] = maxChecksPerAddress
	for range 2 * freeFailures {
		if _, err := g.Authenticate(t.Context(), Presented{Remote: addr, User: "alice", Password: "x"}); !errors.Is(err, ErrBusy) {
			t.Fatalf("%v, want %v", err, ErrBusy)
		}
	}
	if g.failures.exhausted(addr) {
		t.Error("the address has no free failure left")
	}
}
