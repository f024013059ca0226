// Package hook answers POST /-/hooks/push, by which code hosts (GitHub, GitLab, Gitea,
// Forgejo and others that sign in these ways) tell that something was pushed.
//
// # A hint and nothing else
//
// Of what a hook says nothing is believed but where to look again: the host and path of
// the repository, as the beginning of module paths, and what the operator has written
// behind the address of the hook (?module=go.example.com/m, repeatable) for modules that
// are not named like their repository. All modules below these are looked for anew when
// somebody wants them, so a hook that lies costs a question more and no wrong answer.
//
// # Who is believed that much
//
// Whoever knows one of the secrets (Secrets): by an HMAC-SHA256 of the body in
// X-Hub-Signature-256, X-Gitea-Signature, X-Forgejo-Signature or X-Gogs-Signature, by one
// of "id.time.body" in Webhook-Signature (https://www.standardwebhooks.com), or by the
// secret itself in X-Gitlab-Token. Comparisons take the same time whatever is wrong. A
// body has at most 1 MiB: hosts send more only for pushes of hundreds of commits, and
// tags have hooks of their own.
//
// A delivery that was seen before, by its id or its body, changes nothing and is told so
// with 200; 4,096 are remembered, for a day at most, by each gateway. What could not be
// done is not remembered: hosts try that again.
//
// # What it costs
//
// One order (package refresh) for each path and second, however many hooks come: those
// that come within a second of one wait and share the next. At most 64 are answered at a
// time.
package hook

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ringmod/ringmod/internal/refresh"
)

const (
	maxBody  = 1 << 20
	maxAtOne = 64               // time: hooks that are being answered
	patience = 10 * time.Second // for a body, and for an order
)

// Config says what a Handler does.
type Config struct {
	Secrets *Secrets // required
	// Refresh gives an order to look again. Errors say why it could not. Required.
	Refresh func(ctx context.Context, s refresh.Subject) error
	Logger  *slog.Logger // nil = silent
}

// Handler is an http.Handler for one address.
type Handler struct {
	cfg    Config
	log    *slog.Logger
	places chan struct{}
	seen   deliveries
	turns  turns
}

// New returns a Handler. It does no I/O.
func New(cfg Config) *Handler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Handler{cfg: cfg, log: cfg.Logger, places: make(chan struct{}, maxAtOne)}
}

// answer is what a host is told.
type answer struct {
	status int
	text   string
}

// ServeHTTP answers one hook.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := h.answer(w, r)
	to := w.Header()
	to.Set("Content-Type", "text/plain; charset=utf-8")
	to.Set("X-Content-Type-Options", "nosniff")
	to.Set("Cache-Control", "no-store")
	if a.status >= http.StatusBadRequest {
		to.Set("Connection", "close") // the body may not have been read
	}
	if a.status == http.StatusServiceUnavailable {
		to.Set("Retry-After", "5")
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.text+"\n")
}

func (h *Handler) answer(w http.ResponseWriter, r *http.Request) answer {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return answer{http.StatusMethodNotAllowed, "code hosts tell of pushes here, by POST"}
	}
	select {
	case h.places <- struct{}{}:
		defer func() { <-h.places }()
	default:
		return answer{http.StatusServiceUnavailable, "too many hooks at a time"}
	}
	if !isSigned(r.Header) {
		return answer{http.StatusForbidden, "no signature: give the hook the secret that is in the file of --hook-secret-file"}
	}
	// A writer without deadlines is a test's.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, long := errors.AsType[*http.MaxBytesError](err); long {
		return answer{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes: let the hook tell of tags, or of fewer commits at a time", maxBody)}
	}
	if err != nil {
		return answer{http.StatusBadRequest, "the body did not come whole"}
	}
	if !h.cfg.Secrets.match(r.Context(), r.Header, body) {
		h.log.WarnContext(r.Context(), "a hook with a bad signature was refused", "remote", r.RemoteAddr)
		return answer{http.StatusForbidden, "the signature is not one by any secret in the file of --hook-secret-file"}
	}
	return h.signed(r, body)
}

// signed answers who knows a secret.
func (h *Handler) signed(r *http.Request, body []byte) answer {
	event := eventOf(r.Header)
	if !isPush(event) {
		return answer{http.StatusOK, fmt.Sprintf("signed well; there is nothing to do for event %.40q", event)}
	}
	paths, err := pathsOf(r.Header.Get("Content-Type"), body)
	if err != nil {
		return answer{http.StatusBadRequest, err.Error()}
	}
	more, err := modulesOf(r.URL.Query())
	if err != nil {
		return answer{http.StatusBadRequest, err.Error()}
	}
	for _, path := range more {
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		return answer{http.StatusOK, "signed well; it names no repository that modules could be in"}
	}
	forget, replayed := h.seen.add(deliveryOf(r.Header), sha256.Sum256(body), time.Now())
	if replayed {
		return answer{http.StatusOK, "this delivery was seen before: nothing was done"}
	}
	if err := h.tell(r.Context(), paths); err != nil {
		forget()
		h.log.WarnContext(r.Context(), "a push was told and not passed on", "module", paths[0], "err", err)
		return answer{http.StatusServiceUnavailable, "the nodes could not be told: " + strings.ToValidUTF8(err.Error(), "")}
	}
	h.log.InfoContext(r.Context(), "a push was told", "module", paths[0], "modules", len(paths), "event", event)
	return answer{http.StatusOK, "looking again for " + strings.Join(paths, ", ") + " and all modules below"}
}

// tell gives orders for paths, all at once, so that a node that hangs costs its time once.
func (h *Handler) tell(ctx context.Context, paths []string) error {
	var telling errgroup.Group
	for _, path := range paths {
		telling.Go(func() error { return h.turns.take(ctx, path, h.cfg.Refresh) })
	}
	return telling.Wait()
}
