package main

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLog returns a log that goes to the journal with its fields where stderr would go there anyway,
// and to stderr as text otherwise.
func newLog(stderr io.Writer) *slog.Logger {
	if is, err := journal.StderrIsJournalStream(); is && err == nil {
		return slog.New(&journalHandler{text: slog.NewTextHandler(stderr, nil)})
	}
	return slog.New(slog.NewTextHandler(stderr, nil))
}

// journalHandler writes records to the journal: an attribute "session" becomes the field CNTR_SESSION.
type journalHandler struct {
	text  slog.Handler // for when the journal does not take it
	attrs []slog.Attr
}

func (h *journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle writes one entry, whose message also tells the error, so that plain journalctl shows it.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	fields := map[string]string{}
	message := r.Message
	add := func(a slog.Attr) bool {
		value := a.Value.Resolve().String()
		fields[field(a.Key)] = value
		if a.Key == "error" {
			message += ": " + value
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	if err := journal.Send(message, priority(r.Level), fields); err != nil {
		return h.text.Handle(ctx, r)
	}
	return nil
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{text: h.text.WithAttrs(attrs), attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup does not group: the journal's fields are flat.
func (h *journalHandler) WithGroup(string) slog.Handler { return h }

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	}
	return journal.PriInfo
}

// field turns an attribute's key into a field name: upper case letters, digits and underscores
// (systemd.journal-fields(7)).
func field(key string) string {
	return "CNTR_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}
