package testhost

import (
	"context"
	"os"
	"os/exec"
	"strings"
)

const defaultMirror = "http://deb.debian.org/debian"

// mirror is where packages come from: TESTHOST_MIRROR, else the Debian archive that this computer's apt
// uses, else Debian's own. Whatever release apt is set up for, an archive has them all.
func mirror(ctx context.Context) string {
	if uri := os.Getenv("TESTHOST_MIRROR"); uri != "" {
		return uri
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format",
		"$(ORIGIN)|$(LABEL)|$(REPO_URI)").Output()
	if err != nil {
		return defaultMirror
	}
	return mirrorFrom(string(out))
}

// mirrorFrom picks the Debian archive from apt's list of index files. Before the first apt-get update the
// list has no origins, so an address that ends in /debian will do.
func mirrorFrom(targets string) string {
	byPath := ""
	for _, line := range strings.Split(targets, "\n") {
		fields := strings.SplitN(line, "|", 3)
		if len(fields) != 3 {
			continue
		}
		uri := strings.TrimRight(fields[2], "/")
		if !strings.HasPrefix(uri, "http://") && !strings.HasPrefix(uri, "https://") {
			continue
		}
		if fields[0] == "Debian" && fields[1] == "Debian" {
			return uri
		}
		if byPath == "" && strings.HasSuffix(uri, "/debian") {
			byPath = uri
		}
	}
	if byPath != "" {
		return byPath
	}
	return defaultMirror
}

// aptOptions are the settings of this computer's apt that decide whether a mirror can be used at all:
// its proxies, and whether it may be a snapshot of the past. mmdebstrap does not take them over.
func aptOptions(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "Acquire").Output()
	if err != nil {
		return nil
	}
	return aptOptionsFrom(string(out))
}

func aptOptionsFrom(dump string) []string {
	var options []string
	for _, line := range strings.Split(dump, "\n") {
		name, value, _ := strings.Cut(line, " ")
		if value == `"";` {
			continue
		}
		switch strings.ToLower(name) {
		case "acquire::http::proxy", "acquire::https::proxy",
			"acquire::check-valid-until", "acquire::check-date":
			options = append(options, "--aptopt="+line)
		}
	}
	return options
}
