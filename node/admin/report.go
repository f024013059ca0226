package admin

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/polite"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Local is the report of this process. What it does not have stays nil.
type Local struct {
	Version string            // of the program
	Started time.Time         // when the process did
	View    func() *ring.View // of its membership; may return nil
	Usage   func() store.Usage
	Fills   func() int // that run
	Streams *Streams
	Copies  Copies
	// Compared tells what this node lacks; *antientropy.Comparer does.
	Compared interface {
		Progress() (p antientropy.Progress, known bool)
	}
	// Moved returns how much of what is to be moved has moved, in thousandths, while
	// the node joins or leaves.
	Moved func() (perMille int, ok bool)
	Hosts *polite.Hosts
	// Databases are the checksum databases that this node serves.
	Databases []*sumdb.DB
}

// Copies tells what other nodes are still to get; *copies.Keeper does.
type Copies interface {
	Hints() int         // objects that wait for members that were down
	Lag() time.Duration // how long the one waits that has waited longest; 0 = none waits
}

// Report implements Reporter.
func (l *Local) Report() *ringmodv1.MemberReport {
	r := &ringmodv1.MemberReport{Version: l.Version, Uptime: durationpb.New(time.Since(l.Started))}
	if l.Usage != nil {
		u := l.Usage()
		r.DiskLimit, r.DiskUsed, r.DiskFree = uint64(u.Limit), uint64(u.Taken), uint64(u.Free)
		r.Objects, r.Quarantined, r.DiskTrouble = uint64(u.Objects), uint64(u.Quarantined), wire.Line(u.Trouble)
		r.DiskReadOnly = u.ReadOnly
	}
	if l.Fills != nil {
		r.Fills = uint32(l.Fills())
	}
	if l.Streams != nil {
		r.Streams = uint32(l.Streams.Running())
	}
	if l.Copies != nil {
		r.Hints = uint64(l.Copies.Hints())
		if lag := l.Copies.Lag(); lag > 0 {
			r.ReplicationLag = durationpb.New(lag)
		}
	}
	if l.Compared != nil {
		p, _ := l.Compared.Progress()
		r.PartitionsLacking, r.BytesLacking = uint32(p.Partitions), uint64(p.Missing)
	}
	if l.Moved != nil {
		if moved, ok := l.Moved(); ok {
			r.MovedPerMille = new(uint32(moved))
		}
	}
	if l.Hosts != nil {
		r.Hosts = hosts(l.Hosts)
	}
	for _, db := range l.Databases {
		r.ChecksumDatabases = append(r.ChecksumDatabases, database(db))
	}
	if v := l.View(); v != nil {
		r.ViewDigest, r.ViewSeq = v.Digest(), v.Seq()
	}
	return r
}

// maxHosts is how many upstream hosts a report tells of (admin.proto).
const maxHosts = 64

func hosts(h *polite.Hosts) []*ringmodv1.HostReport {
	var all []*ringmodv1.HostReport
	for _, r := range h.Reports(maxHosts) {
		p := &ringmodv1.HostReport{Host: wire.Line(r.Host), State: polite.WireState(r.State), Requests: r.Requests, Rate: r.Rate, LastError: wire.Line(r.Trouble)}
		if r.Left > 0 {
			p.Held = durationpb.New(r.Left)
		}
		if r.Trouble != "" {
			p.LastErrorAge = durationpb.New(time.Since(r.Troubled))
		}
		all = append(all, p)
	}
	return all
}

func database(db *sumdb.DB) *ringmodv1.ChecksumDatabase {
	records, trouble := db.State(context.Background()) // from memory, or a document once
	d := &ringmodv1.ChecksumDatabase{Name: db.Name(), Records: uint64(records)}
	if trouble.Why != "" {
		d.Trouble, d.Text, d.TroubleAge = trouble.Why, wire.Line(trouble.Text), durationpb.New(max(0, time.Since(trouble.At)))
	}
	return d
}

// Streams counts the objects that a server is sending.
type Streams struct{ running atomic.Int64 }

// Running returns how many there are now.
func (s *Streams) Running() int { return int(s.running.Load()) }

// Intercept is a grpc.StreamServerInterceptor for the server that counts.
func (s *Streams) Intercept(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod == ringmodv1.CacheService_Get_FullMethodName {
		s.running.Add(1)
		defer s.running.Add(-1)
	}
	return next(srv, stream)
}
