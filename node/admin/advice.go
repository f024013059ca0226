package admin

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	maxAdvice = 100      // findings and retractions in an answer
	maxRead   = 16 << 20 // bytes of a list or go.mod, as the go command has it
)

// learn begins to ask what upstream has changed of a module, or of one version of it, and
// what its author says. about waits for that, at most as long as for others. It reads
// what nodes hold, and fetches nothing.
func (s *service) learn(ctx context.Context, v *ring.View, m *ringmodv1.ModuleVersion) (about func() ([]*ringmodv1.AuditFinding, *ringmodv1.Advice)) {
	var findings []*ringmodv1.AuditFinding
	var advice *ringmodv1.Advice
	if m == nil {
		return func() ([]*ringmodv1.AuditFinding, *ringmodv1.Advice) { return nil, nil }
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	var asking sync.WaitGroup
	for _, ask := range []func(){
		func() { findings = s.openFindings(ctx, m) },
		func() { advice = s.advice(ctx, v, m) },
	} {
		asking.Go(func() {
			var err error
			defer s.survive(ctx, m.GetPath(), &err)
			ask()
		})
	}
	return func() ([]*ringmodv1.AuditFinding, *ringmodv1.Advice) {
		asking.Wait()
		cancel()
		return findings, advice
	}
}

// openFindings returns what all nodes have found about a module, or a version, and what
// is so still.
func (s *service) openFindings(ctx context.Context, m *ringmodv1.ModuleVersion) []*ringmodv1.AuditFinding {
	req := &ringmodv1.AuditRequest{Modules: []string{m.GetPath()}, Local: true}
	var ids []string
	for id := range s.nodes() {
		if id != s.cfg.Self {
			ids = append(ids, id)
		}
	}
	answers := askAll(ctx, s, ids, func(ctx context.Context, conn grpc.ClientConnInterface, id string) ([]*ringmodv1.AuditFinding, error) {
		var all []*ringmodv1.AuditFinding
		err := receiveAudit(ctx, conn, id, req, func(r *ringmodv1.AuditResponse) error {
			all = append(all, r.GetFindings()...)
			return nil
		})
		return all, err
	})
	var all []*ringmodv1.AuditFinding
	for _, some := range answers {
		all = append(all, some...)
	}
	if s.cfg.Auditor != nil {
		_ = s.auditHere(ctx, req, func(r *ringmodv1.AuditResponse) error {
			all = append(all, r.GetFindings()...)
			return nil
		})
	}
	all = slices.DeleteFunc(MergeFindings(all), func(f *ringmodv1.AuditFinding) bool {
		return f.GetClosedAge() != nil || m.GetVersion() != "" && f.GetModule().GetVersion() != m.GetVersion()
	})
	all = all[:min(len(all), maxAdvice)]
	s.addUses(ctx, all)
	return all
}

// advice reads the go.mod of a module's latest version.
func (s *service) advice(ctx context.Context, v *ring.View, m *ringmodv1.ModuleVersion) *ringmodv1.Advice {
	a := &ringmodv1.Advice{}
	list, err := target.ForModule(m.GetPath(), target.List)
	if err != nil {
		return a
	}
	versions, err := s.readHeld(ctx, v, list)
	if err != nil {
		return a
	}
	if a.Latest = latest(string(versions)); a.GetLatest() == "" {
		return a
	}
	mod, err := target.ForVersion(module.Version{Path: m.GetPath(), Version: a.GetLatest()}, target.Mod)
	if err != nil || mod.Kind != target.Mod {
		return a
	}
	data, err := s.readHeld(ctx, v, mod)
	if err != nil {
		return a
	}
	f, err := modfile.ParseLax("go.mod", data, nil)
	if err != nil {
		return a
	}
	a.Known = true
	if f.Module != nil {
		a.Deprecated = wire.Line(f.Module.Deprecated)
	}
	for _, r := range f.Retract {
		if len(a.GetRetractions()) < maxAdvice && concerns(r, m.GetVersion()) {
			a.Retractions = append(a.Retractions, &ringmodv1.Retraction{Low: r.Low, High: r.High, Rationale: wire.Line(r.Rationale)})
		}
	}
	return a
}

// concerns tells whether a retraction is about a version; about any for "".
func concerns(r *modfile.Retract, version string) bool {
	return version == "" || semver.IsValid(version) && semver.Compare(r.Low, version) <= 0 && semver.Compare(version, r.High) <= 0
}

// latest returns the version whose go.mod counts: the highest release, else the highest of
// all, retracted or not (go.dev/ref/mod#go-mod-file-retract).
func latest(list string) string {
	best := ""
	for version := range strings.FieldsSeq(list) {
		switch {
		case !semver.IsValid(version):
		case best == "", isRelease(version) && !isRelease(best), isRelease(version) == isRelease(best) && semver.Compare(version, best) > 0:
			best = version
		}
	}
	return best
}

func isRelease(version string) bool { return semver.Prerelease(version) == "" }

var errNotHeld = errors.New("no node that answers holds it")

// readHeld reads what nodes hold, of lists the one that was got last.
func (s *service) readHeld(ctx context.Context, v *ring.View, t target.Target) ([]byte, error) {
	holder, youngest := "", (*ringmodv1.Copy)(nil)
	for id, held := range s.holdings(ctx, v, []target.Target{t}) {
		c := held[0].GetCopy()
		if c != nil && (youngest == nil || c.GetAge().AsDuration() < youngest.GetAge().AsDuration()) {
			holder, youngest = id, c
		}
	}
	if youngest == nil {
		return nil, errNotHeld
	}
	obj, err := s.peek(ctx, holder, t)
	if err != nil {
		return nil, err
	}
	defer obj.Body.Close()
	return io.ReadAll(io.LimitReader(obj.Body, maxRead))
}

func (s *service) peek(ctx context.Context, id string, t target.Target) (*cache.Object, error) {
	req := cache.Request{Target: t, Mode: cache.Peek}
	if id == s.cfg.Self {
		if s.cfg.Filler == nil {
			return nil, errNotHeld
		}
		return s.cfg.Filler.Get(ctx, req)
	}
	conn, err := s.cfg.Conns.Conn(id)
	if err != nil {
		return nil, err
	}
	return wire.Get(ctx, conn, req, wire.Options{Node: id})
}
