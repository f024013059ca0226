package admin

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/audit"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Auditor asks upstream about what this node holds; *audit.Auditor is one.
type Auditor interface {
	AuditNow(ctx context.Context, modules []string, report func(audit.Progress) error) error
	List(ctx context.Context, modules []string) []store.Finding
}

const (
	findingsAtOnce = 200 // in a message; Stat takes 256 targets
	maxAuditNames  = 1000
)

// Audit implements AdminService.
func (s *service) Audit(req *ringmodv1.AuditRequest, stream grpc.ServerStreamingServer[ringmodv1.AuditResponse]) (err error) {
	ctx, cancel := s.untilEnding(stream.Context())
	defer cancel()
	defer s.end(ctx, "Audit", &err)
	if err := checkAudit(req.GetModules()); err != nil {
		return err
	}
	if req.GetLocal() {
		if s.cfg.Auditor == nil {
			return malformed(s.cfg.Self + " is a gateway, which holds nothing")
		}
		return s.auditHere(ctx, req, stream.Send)
	}
	var mu sync.Mutex
	send := func(r *ringmodv1.AuditResponse) error {
		s.addUses(ctx, r.GetFindings())
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(r)
	}
	return s.each(ctx, slices.Sorted(maps.Keys(s.nodes())), func(ctx context.Context, id string) error {
		return s.auditOne(ctx, id, req, send)
	})
}

// checkAudit refuses names that cannot be modules, which a person has mistyped.
func checkAudit(modules []string) error {
	if len(modules) > maxAuditNames {
		return malformed("too many modules: at most 1000, or none for all")
	}
	for _, m := range modules {
		if err := CheckModules(m); err != nil {
			return malformed(err.Error())
		}
	}
	return nil
}

// nodes returns the nodes that are in, and whether they are up.
func (s *service) nodes() map[string]bool {
	nodes := make(map[string]bool)
	up := s.ups(s.cfg.Membership.Members())
	for _, m := range s.cfg.Membership.Snapshot().GetMembers() {
		if m.GetRole() == ringmodv1.Role_ROLE_NODE && !ring.State(m.GetState()).IsTombstone() {
			nodes[m.GetId()] = up(m.GetId())
		}
	}
	return nodes
}

// each does work for all nodes at once. The first error ends all.
func (s *service) each(ctx context.Context, ids []string, work func(ctx context.Context, id string) error) error {
	group, running := errgroup.WithContext(ctx)
	for _, id := range ids {
		group.Go(func() (err error) {
			defer s.survive(running, id, &err)
			return work(running, id)
		})
	}
	return group.Wait()
}

// auditOne audits a node, or tells what it has found. Its trouble is told in its last
// message; an error is that of the caller.
func (s *service) auditOne(ctx context.Context, id string, req *ringmodv1.AuditRequest, send func(*ringmodv1.AuditResponse) error) error {
	work, cancel := ctx, context.CancelFunc(func() {})
	if !req.GetNow() {
		work, cancel = context.WithTimeout(ctx, patience)
	}
	defer cancel()
	last, refused := &ringmodv1.AuditResponse{NodeId: id}, error(nil)
	pass := func(r *ringmodv1.AuditResponse) error {
		last = r
		if refused = send(r); refused == nil && ctx.Err() != nil {
			refused = context.Cause(ctx)
		}
		return refused
	}
	var err error
	if id == s.cfg.Self && s.cfg.Auditor != nil {
		err = s.auditHere(work, req, pass)
	} else {
		err = s.auditThere(work, id, req, pass)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case refused != nil || last.GetDone():
		return refused
	case err == nil:
		err = errOther
	case work.Err() != nil:
		err = &cache.Error{Reason: cache.Slow, Text: "no answer within " + patience.String(), Err: err}
	}
	return send(&ringmodv1.AuditResponse{
		NodeId: id, Looked: last.GetLooked(), Total: last.GetTotal(), Troubled: last.GetTroubled(), Trouble: last.GetTrouble(),
		Done: true, Error: detailOf(err),
	})
}

func (s *service) auditHere(ctx context.Context, req *ringmodv1.AuditRequest, send func(*ringmodv1.AuditResponse) error) error {
	last := &ringmodv1.AuditResponse{NodeId: s.cfg.Self}
	if req.GetNow() {
		err := s.cfg.Auditor.AuditNow(ctx, req.GetModules(), func(p audit.Progress) error {
			last = &ringmodv1.AuditResponse{
				NodeId: s.cfg.Self, Looked: uint32(p.Looked), Total: uint32(p.Total), Troubled: uint32(p.Troubled), Trouble: wire.Line(p.Trouble),
			}
			return send(last)
		})
		if err != nil {
			return auditError(err)
		}
	}
	var findings []*ringmodv1.AuditFinding
	for _, f := range s.cfg.Auditor.List(ctx, req.GetModules()) {
		findings = append(findings, findingOf(f, time.Now()))
	}
	for some := range slices.Chunk(findings, findingsAtOnce) {
		if err := send(&ringmodv1.AuditResponse{
			NodeId: s.cfg.Self, Looked: last.GetLooked(), Total: last.GetTotal(), Troubled: last.GetTroubled(), Trouble: last.GetTrouble(), Findings: some,
		}); err != nil {
			return err
		}
	}
	return send(&ringmodv1.AuditResponse{
		NodeId: s.cfg.Self, Looked: last.GetLooked(), Total: last.GetTotal(), Troubled: last.GetTroubled(), Trouble: last.GetTrouble(), Done: true,
	})
}

func auditError(err error) error {
	switch {
	case errors.Is(err, audit.ErrBusy):
		return &cache.Error{Reason: cache.Busy, Text: err.Error(), Err: err}
	case errors.Is(err, audit.ErrOffline):
		return &cache.Error{Reason: cache.NotCached, Text: err.Error(), Err: err}
	default:
		return err
	}
}

func findingOf(f store.Finding, now time.Time) *ringmodv1.AuditFinding {
	t, _ := target.Parse(f.Name) // what is none has no module
	out := &ringmodv1.AuditFinding{
		Target: f.Name, Module: &ringmodv1.ModuleVersion{Path: t.Path, Version: t.Version},
		OldCommit: f.Old, NewCommit: f.New, Repository: f.Repository, Ref: f.Ref, Source: f.Source, Text: wire.Line(f.Text),
		FirstSeenAge: durationpb.New(max(0, now.Sub(f.First))), LookedAge: durationpb.New(max(0, now.Sub(f.Looked))),
	}
	if !f.IsOpen() {
		out.ClosedAge = durationpb.New(max(0, now.Sub(f.Closed)))
	}
	return out
}

// auditThere passes a request on.
func (s *service) auditThere(ctx context.Context, id string, req *ringmodv1.AuditRequest, send func(*ringmodv1.AuditResponse) error) error {
	conn, err := s.cfg.Conns.Conn(id)
	if err != nil {
		return err
	}
	return receiveAudit(ctx, conn, id, &ringmodv1.AuditRequest{Modules: req.GetModules(), Now: req.GetNow(), Local: true}, send)
}

func receiveAudit(ctx context.Context, conn grpc.ClientConnInterface, id string, req *ringmodv1.AuditRequest, send func(*ringmodv1.AuditResponse) error) error {
	stream, err := ringmodv1.NewAdminServiceClient(conn).Audit(ctx, req)
	if err != nil {
		return wire.FromStatus(err, id)
	}
	return relay(stream, id, func(r *ringmodv1.AuditResponse) bool {
		return r.GetNodeId() == id && len(r.GetFindings()) <= findingsAtOnce
	}, send)
}

// addUses adds who still asks for what was found, at all nodes together.
func (s *service) addUses(ctx context.Context, findings []*ringmodv1.AuditFinding) {
	v := s.cfg.Membership.View()
	var targets []target.Target
	for _, f := range findings {
		t, err := target.Parse(f.GetTarget())
		if err != nil {
			return // that node is none of ours
		}
		targets = append(targets, t)
	}
	if v == nil || len(targets) == 0 {
		return
	}
	for _, held := range s.holdings(ctx, v, targets) {
		for i, f := range findings {
			c := held[i].GetCopy()
			f.Uses += c.GetUses()
			if used := c.GetUsedAge(); used != nil && (f.GetUsedAge() == nil || used.AsDuration() < f.GetUsedAge().AsDuration()) {
				f.UsedAge = used
			}
		}
	}
}

// MergeFindings makes one of what several nodes have found about a version: what the one
// says that has looked last, and when it was first seen by any. They come sorted by target.
func MergeFindings(all []*ringmodv1.AuditFinding) []*ringmodv1.AuditFinding {
	byTarget := make(map[string]*ringmodv1.AuditFinding, len(all))
	for _, f := range all {
		old := byTarget[f.GetTarget()]
		switch {
		case old == nil:
			byTarget[f.GetTarget()] = f
			continue
		case f.GetLookedAge().AsDuration() < old.GetLookedAge().AsDuration():
			f, old = old, f
			byTarget[old.GetTarget()] = old
		}
		if f.GetFirstSeenAge().AsDuration() > old.GetFirstSeenAge().AsDuration() {
			old.FirstSeenAge = f.GetFirstSeenAge()
		}
	}
	return slices.SortedFunc(maps.Values(byTarget), func(a, b *ringmodv1.AuditFinding) int { return cmp.Compare(a.GetTarget(), b.GetTarget()) })
}

// CheckModules returns an error for what is neither the path of a module nor DIR/...; it is
// made for whoever typed it.
func CheckModules(arg string) error {
	path, below := strings.CutSuffix(arg, "/...")
	err := module.CheckPath(path)
	if err != nil && below {
		err = module.CheckImportPath(path) // below a host there are modules, though it is none
	}
	return err
}
