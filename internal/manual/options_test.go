package manual

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A program is what its source says of its command line.
type program struct {
	usage   string
	options map[string]string // by long name, the letter or ""
}

// definition is a method of pflag.FlagSet that defines an option.
var definition = regexp.MustCompile(`^(Bool|Int|String|StringArray|Duration)(Var)?(P)?$`)

func readProgram(t *testing.T, name string) program {
	t.Helper()
	dir := filepath.Join("../../cmd", name)
	if name == "cntr-attach" {
		dir = "../cli" // it shares its command line with cntr-direct
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	p := program{options: map[string]string{}}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if len(n.Names) == 1 && n.Names[0].Name == "usage" && len(n.Values) == 1 {
					p.usage = literal(n.Values[0])
				}
			case *ast.CallExpr:
				p.define(n)
			}
			return true
		})
	}
	if p.usage == "" || len(p.options) == 0 {
		t.Fatalf("%s: no usage or no options in its source", name)
	}
	return p
}

// define notes the option that a call defines, if it does.
func (p program) define(call *ast.CallExpr) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	flags, ok := method.X.(*ast.Ident)
	parts := definition.FindStringSubmatch(method.Sel.Name)
	if !ok || parts == nil || flags.Name != "f" && flags.Name != "flags" {
		return
	}
	args := call.Args
	if parts[2] != "" {
		args = args[1:] // where the value goes
	}
	letter := ""
	if parts[3] != "" {
		letter = literal(args[1])
	}
	p.options[literal(args[0])] = letter
}

func literal(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok {
		if s, err := strconv.Unquote(l.Value); err == nil {
			return s
		}
	}
	return ""
}

// font is roff's change of a font.
var font = regexp.MustCompile(`\\f[A-Z]`)

// readPage returns the plain text of a manual page, and each of its entries (.TP), by section.
func readPage(t *testing.T, file string) (text string, sections map[string][]string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../packaging/man", file))
	if err != nil {
		t.Fatal(err)
	}
	text = font.ReplaceAllString(strings.ReplaceAll(string(raw), `\-`, "-"), "")
	sections = map[string][]string{}
	for _, section := range strings.Split(text, "\n.SH ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		sections[title] = strings.Split(body, "\n.TP\n")
		if rest, ok := strings.CutPrefix(body, ".TP\n"); ok {
			sections[title] = strings.Split(rest, "\n.TP\n")
		}
	}
	return text, sections
}

// named finds what looks like an option in a text.
var named = regexp.MustCompile(`--([a-z][a-z-]*[a-z])`)

func has(text, option string) bool {
	return regexp.MustCompile(regexp.QuoteMeta(option) + `([^a-z-]|$)`).MatchString(text)
}

func TestOptionsAreInTheManual(t *testing.T) {
	for name, page := range map[string]string{"cntr-attach": "cntr-attach.1", "cntrctl": "cntrctl.1", "cntr-attachd": "cntr-attachd.8"} {
		p := readProgram(t, name)
		_, sections := readPage(t, page)
		examples := strings.Join(sections["EXAMPLES"], "\n")
		for long, letter := range p.options {
			if !has(p.usage, "--"+long) || letter != "" && !has(p.usage, "-"+letter) {
				t.Errorf("%s --help says nothing of -%s, --%s", name, letter, long)
			}
			entry := ""
			for _, e := range sections["OPTIONS"] {
				head, _, _ := strings.Cut(e, "\n")
				if has(head, "--"+long) && (letter == "" || has(head, "-"+letter)) {
					entry = e
				}
			}
			switch {
			case entry == "":
				t.Errorf("%s has no entry for -%s, --%s", page, letter, long)
			case long == "help" || long == "version":
			case !strings.Contains(entry, "Example:") && !has(examples, "--"+long) && (letter == "" || !has(examples, "-"+letter)):
				t.Errorf("%s has no example of --%s", page, long)
			}
		}
		for what, text := range map[string]string{"--help": p.usage, page: strings.Join(sections["OPTIONS"], "\n")} {
			for _, m := range named.FindAllStringSubmatch(text, -1) {
				if _, ok := p.options[m[1]]; !ok && m[1] != "help" { // pflag knows that by itself
					t.Errorf("%s of %s names --%s, which it does not know", what, name, m[1])
				}
			}
		}
	}
}

func TestOptionsAreCompleted(t *testing.T) {
	for _, name := range []string{"cntr-attach", "cntrctl"} {
		p := readProgram(t, name)
		for _, file := range []string{name + ".bash", "_" + name, name + ".fish"} {
			text, err := os.ReadFile(filepath.Join("../../packaging/completions", file))
			if err != nil {
				t.Fatal(err)
			}
			for long := range p.options {
				option := "--" + long
				if filepath.Ext(file) == ".fish" {
					option = "-l " + long
				}
				if !has(string(text), option) {
					t.Errorf("%s does not complete --%s", file, long)
				}
			}
		}
	}
}

// A usage fits a terminal of 80 columns and 24 lines.
func TestHelpFitsAScreen(t *testing.T) {
	for _, name := range []string{"cntr-attach", "cntrctl", "cntr-attachd"} {
		lines := strings.Split(strings.TrimSuffix(readProgram(t, name).usage, "\n"), "\n")
		if len(lines) > 24 {
			t.Errorf("%s --help has %d lines", name, len(lines))
		}
		for _, line := range lines {
			if n := len([]rune(line)); n > 80 {
				t.Errorf("%s --help has a line of %d columns: %q", name, n, line)
			}
		}
	}
}
