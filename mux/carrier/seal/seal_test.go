package seal

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/flynn/noise"
)

// key is a private key of 32 bytes that count from first.
func key(tb testing.TB, first byte) *ecdh.PrivateKey {
	tb.Helper()
	k, err := ecdh.X25519().NewPrivateKey(counting(first))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func counting(first byte) []byte {
	b := make([]byte, 32)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func public(k *ecdh.PrivateKey) PublicKey { return PublicKey(k.PublicKey().Bytes()) }

// ends is what a handshake leaves at both ends.
type ends struct {
	opened                                   *Opened
	reply                                    []byte
	first, second                            []byte // messages of the handshake
	clientIn, clientOut, serverIn, serverOut *Cipher
}

func handshake(tb testing.TB, client *ecdh.PrivateKey, c Content, reply string) ends {
	tb.Helper()
	server := key(tb, 0x40)
	sealing, first, err := hello(bytes.NewReader(counting(0x80)), client, public(server), c)
	if err != nil {
		tb.Fatal(err)
	}
	e := ends{first: first}
	if e.opened, err = open(kindHello, bytes.NewReader(counting(0xa0)), server, bytes.Clone(first)); err != nil {
		tb.Fatal(err)
	}
	if e.second, e.serverIn, e.serverOut, err = e.opened.Answer([]byte(reply)); err != nil {
		tb.Fatal(err)
	}
	if e.reply, e.clientIn, e.clientOut, err = sealing.Finish(bytes.Clone(e.second)); err != nil {
		tb.Fatal(err)
	}
	return e
}

func TestHandshake(t *testing.T) {
	own := key(t, 0x20)
	for name, c := range map[string]Content{
		"key":     {Owned: true, Hello: []byte("hello")},
		"token":   {Authorization: "Bearer abc", Hello: []byte("hello")},
		"largest": {Authorization: strings.Repeat("a", MaxAuthorization), Hello: make([]byte, 1024)},
		"empty":   {},
	} {
		t.Run(name, func(t *testing.T) {
			e := handshake(t, own, c, "reply")
			got := e.opened
			if got.Owned != c.Owned || got.Authorization != c.Authorization || !bytes.Equal(got.Hello, c.Hello) || got.Key != public(own) {
				t.Errorf("the server opened %+v of %x", got.Content, got.Key)
			}
			if string(e.reply) != "reply" {
				t.Errorf("the client opened %q", e.reply)
			}
			if n := len(e.first) - len(c.Hello); n > MaxHello {
				t.Errorf("%d bytes more than the hello, at most %d", n, MaxHello)
			}
			for range 3 {
				for _, way := range []struct{ from, to *Cipher }{{e.clientOut, e.serverIn}, {e.serverOut, e.clientIn}} {
					b := way.from.Seal(nil, []byte("message"))
					if len(b) != len("message")+Overhead {
						t.Errorf("sealed to %d bytes", len(b))
					}
					if plain, err := way.to.Open(b); err != nil || string(plain) != "message" {
						t.Errorf("opened %q, %v", plain, err)
					}
				}
			}
		})
	}
	if _, _, err := Hello(own, public(own), Content{Authorization: strings.Repeat("a", MaxAuthorization+1)}); err == nil {
		t.Error("an authorization that is too long was sealed")
	}
}

// A client without a key makes one each time.
func TestHandshakeWithoutKey(t *testing.T) {
	a, b := handshake(t, nil, Content{}, ""), handshake(t, nil, Content{}, "")
	if a.opened.Key == b.opened.Key || a.opened.Key == (PublicKey{}) {
		t.Errorf("keys %x and %x", a.opened.Key, b.opened.Key)
	}
}

func TestOnlyTheServerOpens(t *testing.T) {
	_, first, err := Hello(key(t, 0x20), public(key(t, 0x40)), Content{Owned: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHello(key(t, 0x41), first); !errors.Is(err, ErrBroken) {
		t.Errorf("another server: %v", err)
	}
	voucher, err := Voucher(key(t, 0x20), public(key(t, 0x40)), Content{Owned: true})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := OpenVoucher(key(t, 0x40), voucher); err != nil || !o.Owned {
		t.Errorf("voucher: %v", err)
	}
	for name, b := range map[string][]byte{"voucher": voucher, "voucher that says hello": append([]byte{kindHello}, voucher[1:]...)} {
		if _, err := OpenHello(key(t, 0x40), b); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Keys with which anybody knows the secret.
	for _, weak := range []PublicKey{{}, {1}} {
		if _, _, err := Hello(key(t, 0x20), weak, Content{}); err == nil {
			t.Errorf("sealed for %x", weak)
		}
	}
}

// Whatever byte of the handshake is changed, it fails.
func TestHandshakeChanged(t *testing.T) {
	c := Content{Owned: true, Authorization: "Bearer x", Hello: []byte("hello")}
	server := key(t, 0x40)
	sealing, first, err := Hello(key(t, 0x20), public(server), c)
	if err != nil {
		t.Fatal(err)
	}
	for i := range first {
		changed := bytes.Clone(first)
		changed[i] ^= 0x80 // of byte 32 too, the end of the ephemeral key, where X25519 ignores it
		if _, err := OpenHello(server, changed); !errors.Is(err, ErrBroken) {
			t.Errorf("byte %d: %v", i, err)
		}
		if _, err := OpenHello(server, first[:i]); !errors.Is(err, ErrBroken) {
			t.Errorf("%d of %d bytes: %v", i, len(first), err)
		}
	}
	o, err := OpenHello(server, first)
	if err != nil {
		t.Fatal(err)
	}
	second, _, _, err := o.Answer([]byte("reply"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range second {
		changed := bytes.Clone(second)
		changed[i] ^= 4
		if _, _, _, err := sealing.Finish(changed); !errors.Is(err, ErrBroken) {
			t.Errorf("byte %d of the answer: %v", i, err)
		}
	}
}

// A message that is changed, left out, played again or swapped does not open, and
// nothing after it does.
func TestMessagesInOrder(t *testing.T) {
	for name, do := range map[string]func(m [][]byte) [][]byte{
		"changed":     func(m [][]byte) [][]byte { m[1][3] ^= 1; return m },
		"tag changed": func(m [][]byte) [][]byte { m[1][len(m[1])-1] ^= 1; return m },
		"cut":         func(m [][]byte) [][]byte { m[1] = m[1][:len(m[1])-1]; return m },
		"short":       func(m [][]byte) [][]byte { m[1] = m[1][:Overhead-1]; return m },
		"empty":       func(m [][]byte) [][]byte { m[1] = nil; return m },
		"longer":      func(m [][]byte) [][]byte { m[1] = append(m[1], 0); return m },
		"left out":    func(m [][]byte) [][]byte { return append(m[:1], m[2:]...) },
		"twice":       func(m [][]byte) [][]byte { return [][]byte{m[0], bytes.Clone(m[0]), m[1], m[2]} },
		"swapped":     func(m [][]byte) [][]byte { m[1], m[2] = m[2], m[1]; return m },
	} {
		t.Run(name, func(t *testing.T) {
			e := handshake(t, key(t, 0x20), Content{}, "")
			var sent [][]byte
			for _, text := range []string{"one", "two", "three"} {
				sent = append(sent, e.clientOut.Seal(nil, []byte(text)))
			}
			got := do(sent)
			if plain, err := e.serverIn.Open(got[0]); err != nil || string(plain) != "one" {
				t.Fatalf("first: %q, %v", plain, err)
			}
			if plain, err := e.serverIn.Open(got[1]); !errors.Is(err, ErrBroken) {
				t.Errorf("opened %q, %v", plain, err)
			}
		})
	}
	// The other direction's messages do not open either.
	e := handshake(t, key(t, 0x20), Content{}, "")
	if _, err := e.clientIn.Open(e.clientOut.Seal(nil, []byte("own"))); !errors.Is(err, ErrBroken) {
		t.Errorf("own message: %v", err)
	}
}

// The library's CipherState, which is slower, does the same.
func TestCipherIsThatOfNoise(t *testing.T) {
	e := handshake(t, key(t, 0x20), Content{}, "")
	reference := noise.UnsafeNewCipherState(suite, e.clientOut.key, 0)
	var got, want, opened []byte
	for i := range rekeyEvery + 3 {
		if i > 0 && i%rekeyEvery == 0 {
			reference.Rekey()
		}
		got = e.clientOut.Seal(got[:0], []byte("message"))
		var err error
		if want, err = reference.Encrypt(want[:0], nil, []byte("message")); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("message %d: %x, want %x, %v", i, got, want, err)
		}
		if opened, err = e.serverIn.Open(got); err != nil || string(opened) != "message" {
			t.Fatalf("message %d: %q, %v", i, opened, err)
		}
	}
}

func TestQuestion(t *testing.T) {
	server := key(t, 0x40)
	q, b, err := Ask()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := Introduce(server, b)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := q.Key(bytes.Clone(answer)); err != nil || got != public(server) {
		t.Errorf("key %x, %v", got, err)
	}
	for i := range answer {
		q, b, err := Ask()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := Introduce(server, b)
		if err != nil {
			t.Fatal(err)
		}
		answer[i] ^= 1
		if _, err := q.Key(answer); !errors.Is(err, ErrBroken) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for _, bad := range [][]byte{nil, {kindQuestion}, b[:20], append(b, 0), make([]byte, 33)} {
		if _, err := Introduce(server, bad); !errors.Is(err, ErrBroken) {
			t.Errorf("question %x: %v", bad, err)
		}
	}
}

func TestVectors(t *testing.T) {
	e := handshake(t, key(t, 0x20), Content{Owned: true, Authorization: "Bearer x", Hello: []byte("hello")}, "reply")
	for _, v := range []struct {
		name string
		got  []byte
	}{
		{"sealed-hello", e.first},
		{"sealed-reply", e.second},
		{"confirmation", e.clientOut.Seal(nil, nil)},
		{"sealed-up", e.clientOut.Seal(nil, []byte("up"))},
		{"sealed-down", e.serverOut.Seal(nil, []byte("down"))},
	} {
		if !bytes.Equal(v.got, vector(t, v.name)) {
			t.Errorf("%s %x", v.name, v.got)
		}
	}
}

func vector(tb testing.TB, name string) []byte {
	tb.Helper()
	page, err := os.ReadFile("../../PROTOCOL.md")
	if err != nil {
		tb.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^    ` + name + ` ([0-9a-f]+)$`).FindSubmatch(page)
	if m == nil {
		tb.Fatalf("PROTOCOL.md has no vector %q", name)
	}
	b, err := hex.DecodeString(string(m[1]))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Nobody without keys makes anything that opens, and nothing panics.
func FuzzOpen(f *testing.F) {
	server := key(f, 0x40)
	_, first, err := hello(bytes.NewReader(counting(0x80)), key(f, 0x20), public(server), Content{Owned: true, Hello: []byte("hello")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(first)
	f.Add(first[:40])
	f.Add([]byte{kindQuestion})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := OpenHello(server, b); err == nil && !bytes.Equal(b, first) {
			t.Errorf("%x opened", b)
		}
		_, _ = OpenVoucher(server, b)
		_, _ = Introduce(server, b)
	})
}

func FuzzContent(f *testing.F) {
	f.Add(Content{Owned: true, Authorization: "Bearer x", Hello: []byte("hello")}.append(nil))
	f.Add([]byte{0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseContent(b)
		if err != nil {
			if !errors.Is(err, ErrBroken) {
				t.Error(err)
			}
			return
		}
		if again := c.append(nil); !bytes.Equal(again[1:], b[1:]) {
			t.Errorf("%x became %x", b, again)
		}
	})
}
