package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// table is a list to be shown as machinectl(1) shows its own, or as JSON.
type table struct {
	columns         []column
	rows            [][]any // a value for each column
	none, one, many string  // how many there are
}

type column struct {
	name  string
	right bool // numbers
}

// show writes a table to standard output, as the options say.
func (o *options) show(t table) error {
	if o.json != "off" {
		objects := []map[string]any{}
		for _, row := range t.rows {
			object := map[string]any{}
			for i, c := range t.columns {
				object[strings.ToLower(c.name)] = row[i]
			}
			objects = append(objects, object)
		}
		return writeJSON(os.Stdout, o.json, objects)
	}
	return o.page(func(w io.Writer, colours bool) error {
		_, err := io.WriteString(w, t.text(!o.noLegend, colours))
		return err
	})
}

func writeJSON(w io.Writer, mode string, value any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if mode == "pretty" {
		e.SetIndent("", "\t")
	}
	return e.Encode(value)
}

// text lays out the table. The last column is as wide as it is.
func (t table) text(legend, colours bool) string {
	cells := [][]string{}
	if legend && len(t.rows) > 0 {
		var head []string
		for _, c := range t.columns {
			head = append(head, c.name)
		}
		cells = append(cells, head)
	}
	for _, row := range t.rows {
		var line []string
		for _, value := range row {
			if list, ok := value.([]string); ok {
				value = strings.Join(list, " ")
			}
			text := printable(fmt.Sprint(value))
			if text == "" {
				text = "-"
			}
			line = append(line, text)
		}
		cells = append(cells, line)
	}
	widths := make([]int, len(t.columns))
	for _, line := range cells {
		for i, text := range line {
			widths[i] = max(widths[i], len([]rune(text)))
		}
	}
	var b strings.Builder
	for n, line := range cells {
		var out strings.Builder
		for i, text := range line {
			space := strings.Repeat(" ", widths[i]-len([]rune(text)))
			if t.columns[i].right {
				text, space = space+text, ""
			}
			if i > 0 {
				out.WriteByte(' ')
			}
			out.WriteString(text + space)
		}
		text := strings.TrimRight(out.String(), " ")
		if colours && legend && n == 0 {
			text = "\x1b[4m" + text + "\x1b[0m"
		}
		b.WriteString(text + "\n")
	}
	if legend {
		switch len(t.rows) {
		case 0:
			b.WriteString(t.none + "\n")
		case 1:
			b.WriteString("\n" + t.one + "\n")
		default:
			fmt.Fprintf(&b, "\n"+t.many+"\n", len(t.rows))
		}
	}
	return b.String()
}

// printable replaces what a terminal would take for a command: machines, users and commands have any names they like.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// page calls write with a pager where systemd's tools use one: on a terminal, unless it is turned off. The pager is
// $SYSTEMD_PAGER, $PAGER or less; empty or "cat" is none.
func (o *options) page(write func(w io.Writer, colours bool) error) error {
	if !isTerminal(os.Stdout) {
		return write(os.Stdout, false)
	}
	_, noColour := os.LookupEnv("NO_COLOR")
	colours := !noColour && os.Getenv("TERM") != "dumb"
	pager := "less"
	for _, name := range []string{"PAGER", "SYSTEMD_PAGER"} {
		if value, set := os.LookupEnv(name); set {
			pager = value
		}
	}
	fields := strings.Fields(pager)
	if o.noPager || len(fields) == 0 || fields[0] == "cat" {
		return write(os.Stdout, colours)
	}
	cmd := exec.Command(fields[0], fields[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// As systemd has it: quit if it fits the screen, pass colours, chop lines, do not clear.
	less := "FRSXMK"
	if value, set := os.LookupEnv("SYSTEMD_LESS"); set {
		less = value
	}
	cmd.Env = append(os.Environ(), "LESS="+less, "LESSSECURE=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return write(os.Stdout, colours) // there is none
	}
	err = write(in, colours)
	_ = in.Close()
	if errors.Is(err, unix.EPIPE) {
		err = nil // it was left before the end
	}
	_ = cmd.Wait() // its exit status is nobody's business
	return err
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
