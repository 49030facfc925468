package image

import "strings"

// environLimit bounds the file that an image has its variables in, in bytes.
const environLimit = 64 << 10

// parseEnviron reads the variables of an environment file as pam_env(8) reads /etc/environment: a line for each,
// NAME=VALUE, with "export" in front or not, quotes around the value or not. Lines that are none are left out.
func parseEnviron(text string) []string {
	var env []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		line = strings.TrimSpace(strings.TrimPrefix(line, "export "))
		name, value, ok := strings.Cut(line, "=")
		if !ok || !isName(name) || strings.IndexByte(value, 0) >= 0 {
			continue
		}
		if q := len(value) - 1; q > 0 && (value[0] == '"' || value[0] == '\'') && value[q] == value[0] {
			value = value[1:q]
		}
		env = append(env, name+"="+value)
	}
	return env
}

func isName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
