package hook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	minSecret     = 16 // bytes: shorter ones can be guessed
	maxSecrets    = 64
	maxSecretFile = 64 << 10
)

// Secrets are those of a file, read again when it changes: one in a line, several while
// one takes the place of another; lines that begin with # are left out.
type Secrets struct {
	file string
	log  *slog.Logger

	mu      sync.Mutex
	all     [][]byte
	size    int64
	changed time.Time
}

// OpenSecrets reads a file. Its errors are made for who has written it.
func OpenSecrets(file string, log *slog.Logger) (*Secrets, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Secrets{file: file, log: log}
	return s, s.read()
}

// read reads the file unless it is as it was. s.mu is held, or nobody has s yet.
func (s *Secrets) read() error {
	info, err := os.Stat(s.file)
	if err != nil {
		return err
	}
	if s.all != nil && info.Size() == s.size && info.ModTime().Equal(s.changed) {
		return nil
	}
	if info.Size() > maxSecretFile {
		return fmt.Errorf("%s has more than %d bytes", s.file, maxSecretFile)
	}
	data, err := os.ReadFile(s.file)
	if err != nil {
		return err
	}
	all, err := parseSecrets(data)
	if err != nil {
		return fmt.Errorf("%s: %w", s.file, err)
	}
	s.all, s.size, s.changed = all, info.Size(), info.ModTime()
	return nil
}

func parseSecrets(data []byte) (all [][]byte, err error) {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0 || line[0] == '#':
			continue
		case len(line) < minSecret:
			return nil, fmt.Errorf("line %d: a secret of %d bytes can be guessed, want %d or more", n, len(line), minSecret)
		case len(all) == maxSecrets:
			return nil, fmt.Errorf("more than %d secrets", maxSecrets)
		}
		all = append(all, line)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no secret: write one of %d bytes or more in a line", minSecret)
	}
	return all, nil
}

// now returns the secrets as the file has them; those that it had last where it cannot be
// read.
func (s *Secrets) now(ctx context.Context) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.read(); err != nil {
		s.log.ErrorContext(ctx, "the secrets of hooks cannot be read again, those known stay", "path", s.file, "err", err)
	}
	return s.all
}

// The headers that carry an HMAC-SHA256 of the body in hex, and what is before it.
//
//nolint:gochecknoglobals // a table that never changes
var signatures = [...]struct{ header, prefix string }{
	{"X-Hub-Signature-256", "sha256="},
	{"X-Gitea-Signature", ""},
	{"X-Forgejo-Signature", ""},
	{"X-Gogs-Signature", ""},
}

const (
	gitlabToken  = "X-Gitlab-Token"
	standardSign = "Webhook-Signature"
	standardID   = "Webhook-Id"
	standardTime = "Webhook-Timestamp"
)

// isSigned tells whether there is anything to compare.
func isSigned(h http.Header) bool {
	for _, s := range signatures {
		if h.Get(s.header) != "" {
			return true
		}
	}
	return h.Get(gitlabToken) != "" || h.Get(standardSign) != ""
}

// match tells whether any signature is one by any secret. It looks at all of them,
// whatever it finds.
func (s *Secrets) match(ctx context.Context, h http.Header, body []byte) bool {
	found := false
	for _, secret := range s.now(ctx) {
		sum := sign(secret, body)
		for _, each := range signatures {
			text, ok := strings.CutPrefix(h.Get(each.header), each.prefix)
			got, err := hex.DecodeString(text)
			if hmac.Equal(got, sum) && ok && err == nil {
				found = true
			}
		}
		// Of the same length, whatever was sent.
		if token := h.Get(gitlabToken); hmac.Equal(sign(secret, []byte(token)), sign(secret, secret)) && token != "" {
			found = true
		}
		if isStandard(secret, h, body) {
			found = true
		}
	}
	return found
}

// isStandard tells whether a signature is right as https://www.standardwebhooks.com has
// it. The time in it is part of what is signed and not looked at: deliveries are
// remembered instead, and clocks may be wrong.
func isStandard(secret []byte, h http.Header, body []byte) bool {
	if encoded, ok := bytes.CutPrefix(secret, []byte("whsec_")); ok {
		if key, err := base64.StdEncoding.DecodeString(string(encoded)); err == nil {
			secret = key
		}
	}
	sum := sign(secret, []byte(h.Get(standardID)), []byte("."), []byte(h.Get(standardTime)), []byte("."), body)
	found := false
	for each := range strings.FieldsSeq(h.Get(standardSign)) {
		text, ok := strings.CutPrefix(each, "v1,")
		got, err := base64.StdEncoding.DecodeString(text)
		if hmac.Equal(got, sum) && ok && err == nil {
			found = true
		}
	}
	return found
}

func sign(secret []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, secret)
	for _, part := range parts {
		m.Write(part)
	}
	return m.Sum(nil)
}
