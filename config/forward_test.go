package config

import (
	"errors"
	"testing"
)

func TestParseForward(t *testing.T) {
	tests := []struct {
		in   string
		want Forward
		text string // of want
	}{
		{"5432:db.internal:5432", Forward{"localhost", 5432, "db.internal:5432"}, "localhost:5432:db.internal:5432"},
		{"80:schön.example:80", Forward{"localhost", 80, "xn--schn-7qa.example:80"}, "localhost:80:xn--schn-7qa.example:80"},
		{"5432", Forward{"localhost", 5432, "localhost:5432"}, "localhost:5432:localhost:5432"},
		{"5499:5432", Forward{"localhost", 5499, "localhost:5432"}, "localhost:5499:localhost:5432"},
		{"0:5432", Forward{"localhost", 0, "localhost:5432"}, "localhost:0:localhost:5432"},
		{"0:localhost:80", Forward{"localhost", 0, "localhost:80"}, "localhost:0:localhost:80"},
		{"127.0.0.1:9000:127.0.0.1:9001", Forward{"127.0.0.1", 9000, "127.0.0.1:9001"}, "127.0.0.1:9000:127.0.0.1:9001"},
		{"localhost:9000:db:1", Forward{"localhost", 9000, "db:1"}, "localhost:9000:db:1"},
		{"[::1]:443:[2001:DB8:0::1]:8443", Forward{"::1", 443, "[2001:db8::1]:8443"}, "[::1]:443:[2001:db8::1]:8443"},
		{"[fe80::1%eth0]:1:h:2", Forward{"fe80::1%eth0", 1, "h:2"}, "[fe80::1%eth0]:1:h:2"},
		{"80:[::ffff:10.0.0.1]:80", Forward{"localhost", 80, "10.0.0.1:80"}, "localhost:80:10.0.0.1:80"},
		{"*:8080:h:80", Forward{"*", 8080, "h:80"}, "*:8080:h:80"},
		{":8080:h:80", Forward{"*", 8080, "h:80"}, "*:8080:h:80"},
		{"0.0.0.0:8080:h:80", Forward{"0.0.0.0", 8080, "h:80"}, "0.0.0.0:8080:h:80"},
		{"65535:a_b-c.d.:65535", Forward{"localhost", 65535, "a_b-c.d.:65535"}, "localhost:65535:a_b-c.d.:65535"},
	}
	for _, tt := range tests {
		got, err := ParseForward(tt.in)
		if err != nil || got != tt.want || got.String() != tt.text {
			t.Errorf("ParseForward(%q) = %#v (%s), %v, want %#v", tt.in, got, got, err, tt.want)
		}
	}
}

func TestParseForwardErrors(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", `"" is not a forward`},
		{"0", `"0" is not a forward`},
		{"host", `"host" is not a forward`},
		{"80:0", `"80:0" is not a forward`},
		{"host:80", `"host" is not a port`},
		{"[80]:80", `"80" is not a port`},
		{"80:host", `"80:host" is not a forward`},
		{"a:1:b:2:c", `"a:1:b:2:c" is not a forward`},
		{"::1:80:host:80", `"::1:80:host:80" is not a forward`},
		{"[::1:80:host:80", `"[::1:80:host:80" is not a forward`},
		{"[::1]80:host:80", `"[::1]80:host:80" is not a forward`},
		{"[127.0.0.1]:80:host:80", "[127.0.0.1] is not an IPv6 address"},
		{"80:[\x00]:80", `[\x00] is not an IPv6 address`},
		{"[]:80:host:80", "[] is not an IPv6 address"},
		{"65536:host:80", "port 65536 is out of range"},
		{"-1:host:80", "port -1 is out of range"},
		{"80:host:0", "port 0 is out of range"},
		{"80:host:99999", "port 99999 is out of range"},
		{"http:host:80", `"http" is not a port`},
		{"080:host:80", `"080" is not a port`},
		{"+80:host:80", `"+80" is not a port`},
		{"99999999999999999999:host:80", `"99999999999999999999" is not a port`},
		{"localhost:host:80", `"localhost" is not a port`},
		{"[80]:host:80", `"80" is not a port`},
		{"80::80", `"" is not a host`},
		{"80:*:80", `"*" is not a host`},
		{"80:a b:80", `"a b" is not a host`},
		{"80:schön:65536", "port 65536 is out of range"},
		{"80:\u200dschön:80", "\"\\u200dschön\" is not a host"},
		{"*x:80:h:80", `"*x" is not a host`},
	}
	for _, tt := range tests {
		f, err := ParseForward(tt.in)
		if err == nil {
			t.Errorf("ParseForward(%q) = %s, want an error", tt.in, f)
			continue
		}
		var got *fault
		if !errors.As(err, &got) || got.what != tt.want || got.hint == "" {
			t.Errorf("ParseForward(%q): %q (hint %q), want %q", tt.in, got.what, got.hint, tt.want)
		}
	}
}

func TestForwardCollides(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"80:h:1", "80:h:2", true},
		{"80:h:1", "81:h:1", false},
		{"80:h:1", "127.0.0.2:80:h:1", false},
		{"0:h:1", "0:h:1", false},
		{"*:80:h:1", "127.0.0.2:80:h:2", true},
		{"80:h:1", "[::]:80:h:1", true},
		{"0.0.0.0:80:h:1", "[::1]:80:h:1", true},
		{"localhost:80:h:1", "LOCALHOST:80:h:1", true},
		{"[::1]:80:h:1", "[0::1]:80:h:1", true},
		{"[::ffff:127.0.0.1]:80:h:1", "80:h:1", true},
		{"[::1]:80:h:1", "80:h:1", true},
		{"[::1]:80:h:1", "127.0.0.1:80:h:1", false},
	}
	for _, tt := range tests {
		a, errA := ParseForward(tt.a)
		b, errB := ParseForward(tt.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a.collides(b) != tt.want || b.collides(a) != tt.want {
			t.Errorf("%s and %s: collide is not %v", tt.a, tt.b, tt.want)
		}
	}
}

func FuzzParseForward(f *testing.F) {
	for _, s := range []string{"80:h:80", "[::1]:0:[::2]:1", "*:1:a:2", ":1:a:2", "[fe80::1%a]:1:b:2", "[", "a]:1", "1:2:3:4:5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		forward, err := ParseForward(s)
		if err != nil {
			return
		}
		again, err := ParseForward(forward.String())
		if err != nil || again != forward {
			t.Errorf("%q became %s, which reads as %#v, %v", s, forward, again, err)
		}
		if forward.Port < 0 || forward.Port > 65535 || forward.Bind == "" {
			t.Errorf("%q became %#v", s, forward)
		}
	})
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]Size{
		"0": 0, "1": 1, "4096": 4096, "1KiB": 1 << 10, "128 KiB": 128 << 10, "4MiB": 4 << 20, "1GiB": 1 << 30,
		"8589934591GiB": 8589934591 << 30,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", in, got, err, want)
		} else if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%d prints as %s, which reads as %d, %v", got, got, again, err)
		}
	}
	for _, in := range []string{"", "-1", "-1KiB", "KiB", "1.5MiB", "4MB", "4 M", "+1", "1e3", "0x10", "010", "1_000", "8589934592GiB", "9223372036854775808"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		}
	}
}
