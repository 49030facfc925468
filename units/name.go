package units

import (
	"fmt"
	"strconv"
	"strings"
)

// maxName is the longest unit name that systemd takes, in bytes (systemd.unit(5)).
const maxName = 255

// Escape makes any string a part of a unit name, as systemd-escape(1) does: '/' becomes '-', and every
// byte that is not a letter, a digit, ':', '_' or '.', or that is a '.' in front, becomes \xNN. The
// result tells the string exactly: see [Unescape].
//
// (go-systemd's unit.UnitNameEscape writes a byte below 16 with one digit, which nobody can read back.)
func Escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '/':
			b.WriteByte('-')
		case c == '.' && i == 0, !plain(c):
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Unescape returns the string that [Escape] was given, and whether s can have come from it.
func Unescape(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '-':
			b.WriteByte('/')
		case c == '\\':
			if len(s) < i+4 || s[i+1] != 'x' {
				return "", false
			}
			n, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
			if err != nil {
				return "", false
			}
			b.WriteByte(byte(n))
			i += 3
		case plain(c):
			b.WriteByte(c)
		default:
			return "", false
		}
	}
	out := b.String()
	return out, Escape(out) == s
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == ':' || c == '_' || c == '.'
}

// ScopeName returns the name of a session's scope: "cntr-web-1f2e3d4c.scope". The name of a machine
// that would make it too long is cut, never inside an escape: it is there for people to read, the
// session's id says which it is.
func ScopeName(machine, id string) string {
	const prefix, suffix = "cntr-", ".scope"
	escaped := Escape(machine)
	if room := maxName - len(prefix) - len("-") - len(id) - len(suffix); len(escaped) > room {
		escaped = escaped[:max(0, room)]
		if i := strings.LastIndexByte(escaped, '\\'); i >= 0 && len(escaped)-i < len(`\x00`) {
			escaped = escaped[:i]
		}
	}
	return prefix + escaped + "-" + id + suffix
}

// ParseScopeName returns the escaped machine and the id in a name made by [ScopeName], and whether it
// is one. A '-' in either is written otherwise (Escape) or not used (an id is hexadecimal).
func ParseScopeName(name string) (escaped, id string, ok bool) {
	rest, ok := strings.CutPrefix(name, "cntr-")
	if !ok {
		return "", "", false
	}
	rest, ok = strings.CutSuffix(rest, ".scope")
	if !ok {
		return "", "", false
	}
	i := strings.LastIndexByte(rest, '-')
	if i < 0 || i == len(rest)-1 {
		return "", "", false
	}
	return rest[:i], rest[i+1:], true
}
