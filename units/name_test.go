package units

import (
	"os/exec"
	"strings"
	"testing"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ plain, escaped string }{
		{"web", "web"},
		{"my-web", `my\x2dweb`},
		{"a/b", "a-b"},
		{".hidden", `\x2ehidden`},
		{"a.b", "a.b"},
		{"a b", `a\x20b`},
		{"nspawn:web", "nspawn:web"},
		{"\x01", `\x01`},
		{"ü", `\xc3\xbc`},
		{`a\b`, `a\x5cb`},
		{"%n@1", `\x25n\x401`},
		{"", ""},
	} {
		if got := Escape(c.plain); got != c.escaped {
			t.Errorf("Escape(%q) = %q, want %q", c.plain, got, c.escaped)
		}
		if got, ok := Unescape(c.escaped); got != c.plain || !ok {
			t.Errorf("Unescape(%q) = %q, %v, want %q", c.escaped, got, ok, c.plain)
		}
	}
	for _, bad := range []string{`\`, `\x`, `\x1`, `\xzz`, `\x61`, "a b", ".a", `\x+1`, `\x2D`} {
		if got, ok := Unescape(bad); ok {
			t.Errorf("Unescape(%q) = %q, want a refusal", bad, got)
		}
	}
}

// The reference for the format is systemd-escape itself.
func TestEscapeAsSystemdDoes(t *testing.T) {
	program, err := exec.LookPath("systemd-escape")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"web", "my-web", ".a", "a.b", "ü", "a\x01b", `\`, "a:b_c", "a@b", "a%b"} {
		out, err := exec.Command(program, "--", s).Output()
		if err != nil {
			t.Fatalf("systemd-escape %q: %v", s, err)
		}
		if want := strings.TrimSuffix(string(out), "\n"); Escape(s) != want {
			t.Errorf("Escape(%q) = %q, systemd-escape says %q", s, Escape(s), want)
		}
	}
}

func TestScopeName(t *testing.T) {
	for _, c := range []struct{ machine, id, want string }{
		{"web", "1f2e3d4c", "cntr-web-1f2e3d4c.scope"},
		{"my-web", "1f2e3d4c", `cntr-my\x2dweb-1f2e3d4c.scope`},
	} {
		got := ScopeName(c.machine, c.id)
		if got != c.want {
			t.Errorf("ScopeName(%q, %q) = %q, want %q", c.machine, c.id, got, c.want)
		}
		escaped, id, ok := ParseScopeName(got)
		if escaped != Escape(c.machine) || id != c.id || !ok {
			t.Errorf("ParseScopeName(%q) = %q, %q, %v", got, escaped, id, ok)
		}
	}
	for _, name := range []string{"cntr-web.scope", "cntr-web-.scope", "cntr-web-1.service", "session-1.scope", "cntr.slice"} {
		if _, _, ok := ParseScopeName(name); ok {
			t.Errorf("ParseScopeName(%q) takes it", name)
		}
	}
}

func TestScopeNameFits(t *testing.T) {
	for n := range 300 {
		for _, unit := range []string{"a", "-", "ü"} {
			name := ScopeName(strings.Repeat(unit, n), "1f2e3d4c")
			if len(name) > maxName {
				t.Fatalf("%d × %q: %d bytes", n, unit, len(name))
			}
			escaped, id, ok := ParseScopeName(name)
			if _, whole := Unescape(escaped); !ok || id != "1f2e3d4c" || !whole {
				t.Fatalf("%d × %q: %q", n, unit, name)
			}
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("web")
	f.Add("\x00-/.")
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := Unescape(Escape(s))
		if got != s || !ok {
			t.Errorf("Unescape(Escape(%q)) = %q, %v", s, got, ok)
		}
	})
}

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Session in web: gdb -p 1", "Session in web: gdb -p 1"},
		{"a\nb\x1b[31m\xff", "a�b�[31m�"},
		{strings.Repeat("ü", 300), strings.Repeat("ü", 199) + "…"},
		{strings.Repeat("ü", 200), strings.Repeat("ü", 200)},
	} {
		if got := printable(c.in); got != c.want {
			t.Errorf("printable(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}
