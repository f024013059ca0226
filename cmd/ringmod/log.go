package main

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// newLogger returns a logger that writes lines of the format, text or json, to w.
func newLogger(w io.Writer, format string, level slog.Level) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, usagef("--log-format %q is neither text nor json", format)
	}
}

func parseLevel(s string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s)); err != nil {
		return 0, usagef("--log-level %q is none of debug, info, warn and error", s)
	}
	return level, nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// logDelay is how long a log line may wait for others, so that a busy gateway
// does not pay a system call for each.
const logDelay = 100 * time.Millisecond

// batchWriter collects lines and writes them at least every logDelay.
type batchWriter struct {
	to io.Writer

	mu    sync.Mutex
	buf   *bufio.Writer
	timer *time.Timer // runs while buf holds something
}

func newBatchWriter(w io.Writer) *batchWriter {
	return &batchWriter{to: w, buf: bufio.NewWriterSize(w, 64<<10)}
}

// Write takes one or more whole lines.
func (b *batchWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		b.timer = time.AfterFunc(logDelay, b.Flush)
	}
	if b.buf.Available() < len(p) {
		b.flush()
	}
	return b.buf.Write(p)
}

// Flush writes what has been collected.
func (b *batchWriter) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = nil
	b.flush()
}

// flush drops what cannot be written, as there is nobody to be told: a
// bufio.Writer that has failed once would take nothing ever after.
func (b *batchWriter) flush() {
	if b.buf.Flush() != nil {
		b.buf.Reset(b.to)
	}
}
