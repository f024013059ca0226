package member

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/memberlist"
)

// keyring is memberlist's, kept equal to a file.
type keyring struct {
	path string
	log  *slog.Logger
	ring *memberlist.Keyring

	mu     sync.Mutex // guards what follows, and held to change ring
	text   []byte     // of the file, as applied last
	failed string     // what went wrong last, said once
}

func openKeyring(path string, log *slog.Logger) (*keyring, error) {
	ring, err := memberlist.NewKeyring(nil, nil)
	if err != nil {
		return nil, err
	}
	k := &keyring{path: path, log: log, ring: ring}
	return k, k.reload()
}

// refresh reloads and says what is new.
func (k *keyring) refresh(ctx context.Context) {
	before := k.primary()
	err := k.reload()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.failed = ""
		if !bytes.Equal(before, k.ring.GetPrimaryKey()) {
			k.log.InfoContext(ctx, "gossip encrypts with another key now", "file", k.path)
		}
		return
	}
	if err.Error() != k.failed {
		k.failed = err.Error()
		k.log.ErrorContext(ctx, "cannot reload the gossip keys, keeping those before", "err", err)
	}
}

func (k *keyring) primary() []byte { return k.ring.GetPrimaryKey() }

// reload makes the ring hold what the file holds.
func (k *keyring) reload() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, err := os.ReadFile(k.path)
	if err != nil {
		return fmt.Errorf("reading gossip keys: %w", err)
	}
	if k.text != nil && bytes.Equal(text, k.text) {
		return nil
	}
	keys, err := parseKeys(string(text))
	if err != nil {
		return fmt.Errorf("reading gossip keys: %s: %w", k.path, err)
	}
	if err := k.apply(keys); err != nil {
		return fmt.Errorf("changing gossip keys: %w", err)
	}
	k.text = text
	return nil
}

// apply removes only ever the last key: memberlist removes in place, which those
// who decrypt meanwhile would see as keys out of order.
func (k *keyring) apply(want [][]byte) error {
	for _, key := range want {
		if err := k.ring.AddKey(key); err != nil {
			return err
		}
	}
	if err := k.ring.UseKey(want[0]); err != nil {
		return err
	}
	has := func(key []byte) bool {
		return slices.ContainsFunc(want, func(w []byte) bool { return bytes.Equal(w, key) })
	}
	for {
		keys := k.ring.GetKeys()
		if !slices.ContainsFunc(keys, func(key []byte) bool { return !has(key) }) {
			break
		}
		if err := k.ring.RemoveKey(keys[len(keys)-1]); err != nil {
			return err
		}
	}
	for _, key := range want { // those that were in the way
		if err := k.ring.AddKey(key); err != nil {
			return err
		}
	}
	return nil
}

// parseKeys reads a key per line; empty lines and those that begin with # are
// for people.
func parseKeys(text string) ([][]byte, error) {
	var keys [][]byte
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || memberlist.ValidateKey(key) != nil {
			return nil, fmt.Errorf("line %d is not the base64 of 16, 24 or 32 bytes (try: openssl rand -base64 32)", n)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key in it (try: openssl rand -base64 32)")
	}
	return keys, nil
}
