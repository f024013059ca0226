package direct

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
)

// Refs returns what the tags of the git repository at url point to: commits by ref, such as
// "refs/tags/v1.0.0". It fetches none of them. path is a module that url is said to be
// of. A url that our go command has never come to by itself is not asked:
// the go command is made to look for the repository of path first, and when that is another
// one, the reason is Broken. Absence is that of the whole repository.
func (d *Direct) Refs(ctx context.Context, path, url string) (map[string]string, error) {
	list, err := target.ForModule(path, target.List)
	if err != nil {
		return nil, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	if err := d.prepare(); err != nil {
		return nil, internal("preparing the sandbox of the go command", err)
	}
	if !d.knows(url) {
		resp, err := d.Fetch(ctx, list)
		if err != nil {
			return nil, err
		}
		_ = resp.Body.Close() // from memory
	}
	if !d.knows(url) {
		return nil, &cache.Error{Reason: cache.Broken, Source: source, Text: "the module lives in another repository now, or in none of git"}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, errLimit)
	defer cancel()
	if origin, err := json.Marshal(struct{ URL string }{url}); err == nil {
		d.origins.learn(path, origin)
	}
	var refs map[string]string
	_, err = d.politely(ctx, list, func() (_ *upstream.Response, err error) {
		select {
		case d.places <- struct{}{}:
			defer func() { <-d.places }()
		case <-ctx.Done():
			return nil, d.ended(ctx)
		}
		refs, err = d.lsRemote(ctx, list, url)
		return nil, err
	})
	return refs, err
}

// knows tells whether our go command has found the repository at url for some module: it
// keeps its name beside the clone (cmd/go/internal/modfetch/codehost, WorkDir). A proxy
// could name any other, and make us knock at doors that it cannot reach.
func (d *Direct) knows(url string) bool {
	key := "git3:" + url
	name := filepath.Join(d.modCache(), "cache", "vcs", fmt.Sprintf("%x.info", sha256.Sum256([]byte(key))))
	data, err := os.ReadFile(name)
	return err == nil && strings.TrimSpace(string(data)) == key
}

// lsRemote asks for the tags of a repository.
func (d *Direct) lsRemote(ctx context.Context, t target.Target, url string) (map[string]string, error) {
	v, err := d.equip(ctx, t.Path)
	if err != nil {
		return nil, internal("preparing what git needs", err)
	}
	defer d.leave(ctx, v)
	out, complaints, err := d.execute(ctx, t, v, "git", "ls-remote", "--tags", "-q", "--", url)
	if ended, ok := errors.AsType[*cache.Error](err); ok {
		return nil, ended
	}
	if err != nil {
		return nil, d.classify(ctx, t, v, complaints)
	}
	return refsOf(out), nil
}

// refsOf reads lines of a hash and a ref. For an annotated tag there is a second one with
// the commit, whose ref ends in "^{}", and it is the commit that counts.
func refsOf(out []byte) map[string]string {
	refs := make(map[string]string)
	for line := range bytes.Lines(out) {
		hash, ref, ok := strings.Cut(strings.TrimSpace(string(line)), "\t")
		if !ok {
			continue
		}
		name, peeled := strings.CutSuffix(ref, "^{}")
		if _, known := refs[name]; peeled || !known {
			refs[name] = hash
		}
	}
	return refs
}
