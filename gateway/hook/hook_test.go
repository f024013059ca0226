package hook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ringmod/ringmod/gateway/hook"
	"github.com/ringmod/ringmod/internal/refresh"
)

const (
	secret = "correct horse battery"
	other  = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	push   = `{"ref":"refs/tags/v1.1.0","repository":{"clone_url":"https://example.com/Owner/repo.git","ssh_url":"git@example.com:Owner/repo.git"}}`
)

// orders are those that were given.
type orders struct {
	mu    sync.Mutex
	given []string
	at    []time.Time
	fail  error
}

func (o *orders) give(_ context.Context, s refresh.Subject) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail != nil {
		return o.fail
	}
	if !s.Below {
		return errors.New("modules below are left out")
	}
	o.given, o.at = append(o.given, s.Path), append(o.at, time.Now())
	return nil
}

func (o *orders) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	given := o.given
	o.given = nil
	return given
}

func secretFile(t testing.TB, lines ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func newHandler(t testing.TB, file string) (*hook.Handler, *orders) {
	t.Helper()
	secrets, err := hook.OpenSecrets(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &orders{}
	return hook.New(hook.Config{Secrets: secrets, Refresh: o.give, Logger: slog.New(slog.DiscardHandler)}), o
}

func sum(key, body string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(body))
	return m.Sum(nil)
}

func hub(key, body string) map[string]string {
	return map[string]string{"X-GitHub-Event": "push", "X-Hub-Signature-256": "sha256=" + hex.EncodeToString(sum(key, body))}
}

// post sends a hook and returns status and text of the answer.
func post(t testing.TB, h http.Handler, query, body string, header map[string]string) (status int, text string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/-/hooks/push"+query, strings.NewReader(body))
	for name, value := range header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func with(header map[string]string, more ...string) map[string]string {
	for i := 0; i < len(more); i += 2 {
		header[more[i]] = more[i+1]
	}
	return header
}

func TestHooks(t *testing.T) {
	t.Parallel()
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(other, "whsec_"))
	all := []string{"example.com/Owner/repo", "example.com/owner/repo", "example.com/Owner/repo.git"}
	form := "payload=" + strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22", "&", "%26").Replace(push)
	gitlab := `{"project":{"web_url":"https://git.example.com/group/sub/m","git_http_url":"https://git.example.com:8443/group/sub/m.git"}}`
	for _, tt := range []struct {
		name, query, body string
		header            map[string]string
		status            int
		want              []string
		text              string
	}{
		{"GitHub", "", push, hub(secret, push), 200, slices.Clone(all), "looking again for example.com/Owner/repo"},
		{"GitHub, as a form", "", form, with(hub(secret, form), "Content-Type", "application/x-www-form-urlencoded"), 200, slices.Clone(all), ""},
		{"the other secret", "", push, hub(other, push), 200, slices.Clone(all), ""},
		{"Gitea", "", push, map[string]string{"X-Gitea-Event": "create", "X-Gitea-Signature": hex.EncodeToString(sum(secret, push))}, 200, slices.Clone(all), ""},
		{"GitLab's token", "", gitlab, map[string]string{"X-Gitlab-Event": "Tag Push Hook", "X-Gitlab-Token": secret}, 200, []string{"git.example.com/group/sub/m", "git.example.com/group/sub/m.git"}, ""},
		{"standard webhooks", "", push, map[string]string{
			"Webhook-Id": "1", "Webhook-Timestamp": "2", "Webhook-Signature": "v1,bad v1," + base64.StdEncoding.EncodeToString(sum(string(key), "1.2."+push)),
		}, 200, slices.Clone(all), ""},
		{"vanity", "?module=go.example.com/m&module=go.example.com/m&module=example.com/owner/repo&module=go.example.com/n", push, hub(secret, push), 200, append(slices.Clone(all), "go.example.com/m", "go.example.com/n"), ""},
		{"ping", "", push, with(hub(secret, push), "X-GitHub-Event", "ping"), 200, nil, "nothing to do"},
		{"no repository", "", "{}", hub(secret, "{}"), 200, nil, "names no repository"},
		{"repository at an IP", "", `{"repository":{"clone_url":"https://10.0.0.1/a/b"}}`, hub(secret, `{"repository":{"clone_url":"https://10.0.0.1/a/b"}}`), 200, nil, ""},
		{"not signed", "", push, map[string]string{"X-GitHub-Event": "push"}, 403, nil, "no signature"},
		{"signed by another secret", "", push, hub("incorrect horse battery", push), 403, nil, "not one by any secret"},
		{"signed for another body", "", push + " ", hub(secret, push), 403, nil, ""},
		{"half a signature", "", push, with(hub(secret, push), "X-Hub-Signature-256", "sha256="+hex.EncodeToString(sum(secret, push)[:16])), 403, nil, ""},
		{"without what a signature begins with", "", push, map[string]string{"X-Hub-Signature-256": hex.EncodeToString(sum(secret, push))}, 403, nil, ""},
		{"another token", "", gitlab, map[string]string{"X-Gitlab-Token": secret + "!"}, 403, nil, ""},
		{"no JSON", "", "hello", hub(secret, "hello"), 400, nil, "not the JSON"},
		{"vanity that is no path", "?module=../x", push, hub(secret, push), 400, nil, "?module="},
		{"vanity that is a host's all", "?module=com", push, hub(secret, push), 400, nil, ""},
		{"too long", "", strings.Repeat(" ", 1<<20) + push, hub(secret, push), 413, nil, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, o := newHandler(t, secretFile(t, "# of the team", secret, "", other))
			status, text := post(t, h, tt.query, tt.body, tt.header)
			got := o.take()
			slices.Sort(got)
			slices.Sort(tt.want)
			if status != tt.status || !slices.Equal(got, tt.want) || !strings.Contains(text, tt.text) {
				t.Errorf("answered %d, %q and ordered %q, want %d, %q and %q", status, text, got, tt.status, tt.text, tt.want)
			}
		})
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	h, o := newHandler(t, secretFile(t, secret))
	header := with(hub(secret, push), "X-GitHub-Delivery", "one")
	o.fail = errors.New("no node")
	if status, text := post(t, h, "", push, header); status != http.StatusServiceUnavailable || !strings.Contains(text, "no node") {
		t.Errorf("without nodes: %d, %q", status, text)
	}
	o.fail = nil
	if status, _ := post(t, h, "", push, header); status != http.StatusOK || len(o.take()) == 0 {
		t.Error("what has failed is not tried again")
	}
	later := strings.Replace(push, "v1.1.0", "v1.2.0", 1)
	for name, again := range map[string]struct {
		query, body string
		header      map[string]string
	}{
		"the same":                          {"", push, header},
		"under another id":                  {"", push, with(hub(secret, push), "X-GitHub-Delivery", "two")},
		"without an id, for something else": {"?module=go.example.com/m", push, hub(secret, push)},
		"another body under the same id":    {"", later, with(hub(secret, later), "X-GitHub-Delivery", "one")},
	} {
		if status, text := post(t, h, again.query, again.body, again.header); status != http.StatusOK || !strings.Contains(text, "seen before") || len(o.take()) != 0 {
			t.Errorf("%s: %d, %q", name, status, text)
		}
	}
	if _, _ = post(t, h, "", later, hub(secret, later)); len(o.take()) == 0 {
		t.Error("the next push is taken for a replay")
	}
}

// A flood of hooks that are all well signed costs an order a second, and each of them is
// followed by one.
func TestFlood(t *testing.T) {
	t.Parallel()
	file := secretFile(t, secret)
	synctest.Test(t, func(t *testing.T) {
		h, o := newHandler(t, file)
		var last time.Time
		for i := range 500 {
			body := strings.Replace(push, "v1.1.0", "v1."+time.Duration(i).String(), 1)
			body = strings.ReplaceAll(body, "Owner", "owner")
			go func() {
				for status := 0; status != http.StatusOK; time.Sleep(100 * time.Millisecond) {
					if status, _ = post(t, h, "", body, hub(secret, body)); status != http.StatusOK && status != http.StatusServiceUnavailable {
						t.Errorf("answered %d", status)
					}
				}
			}()
			last = time.Now()
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		o.mu.Lock()
		defer o.mu.Unlock()
		n := 0
		for i, path := range o.given {
			if path == "example.com/owner/repo" {
				n++
				if o.at[i].Before(last) && i == len(o.given)-1 {
					t.Error("the last push was not followed by an order")
				}
			}
		}
		took := o.at[len(o.at)-1].Sub(o.at[0])
		if most := int(took/time.Second) + 1; n < 5 || n > most {
			t.Errorf("%d orders in %v, want at most %d", n, took, most)
		}
	})
}

func TestSecretsAreReadAgain(t *testing.T) {
	t.Parallel()
	file := secretFile(t, secret)
	h, _ := newHandler(t, file)
	check := func(what, key, body string, want int) {
		t.Helper()
		if status, text := post(t, h, "", body, hub(key, body)); status != want {
			t.Errorf("%s: %d, %q, want %d", what, status, text, want)
		}
	}
	check("the new secret before it is there", "the new secret, which is long", "{}", 403)
	if err := os.WriteFile(file, []byte(secret+"\nthe new secret, which is long\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("the old one while both are there", secret, "{}", 200)
	check("the new one", "the new secret, which is long", "{}", 200)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	check("when the file is gone", secret, "{}", 200)
	if err := os.WriteFile(file, []byte("the new secret, which is long\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("the old one when it is out", secret, "{}", 403)
}

func TestBadSecretFiles(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"none": filepath.Join(t.TempDir(), "none"), "empty": secretFile(t, "# nothing"), "short": secretFile(t, "hunter2"),
		"long": secretFile(t, strings.Repeat("x", 1<<17)),
	} {
		if _, err := hook.OpenSecrets(file, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestOnlyPost(t *testing.T) {
	t.Parallel()
	h, _ := newHandler(t, secretFile(t, secret))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/-/hooks/push", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "POST" {
		t.Errorf("got %d", w.Code)
	}
}

// FuzzHook sends any well signed body: nothing panics, and what is ordered can be the
// beginning of module paths and nothing else.
func FuzzHook(f *testing.F) {
	f.Add("", "push", "application/json", []byte(push))
	f.Add("?module=a.b/c", "", "application/x-www-form-urlencoded", []byte("payload=%7B%7D"))
	f.Add("", "Push Hook", "", []byte(`{"project":{"git_ssh_url":"ssh://git@a.b:22/../c"},"repository":{"html_url":"http://a.b/%2e%2e/"}}`))
	file := secretFile(f, secret)
	f.Fuzz(func(t *testing.T, query, event, kind string, body []byte) {
		secrets, err := hook.OpenSecrets(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		var n atomic.Int32 // orders are given at once
		h := hook.New(hook.Config{Secrets: secrets, Refresh: func(_ context.Context, s refresh.Subject) error {
			if n := n.Add(1); n > 100 || s.Check() != nil || !strings.Contains(s.Path, ".") {
				t.Errorf("ordered %d, %q", n, s.Path)
			}
			return nil
		}})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/-/hooks/push", bytes.NewReader(body))
		r.URL.RawQuery = strings.TrimPrefix(query, "?")
		r.Header.Set("X-GitHub-Event", event)
		r.Header.Set("Content-Type", kind)
		r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(sum(secret, string(body))))
		h.ServeHTTP(httptest.NewRecorder(), r)
	})
}
