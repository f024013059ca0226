package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ringmod/ringmod/node/member/membertest"
)

// cut is a rule of the network.
type cut struct {
	from, to []*machine
	both     bool
	kind     membertest.Kind
	upstream bool // between from and upstream
}

func (c cut) String() string {
	arrow, to := " > ", ids(c.to)
	if c.both {
		arrow = " | "
	}
	if c.upstream {
		to = "upstream"
	}
	what := map[membertest.Kind]string{membertest.All: "all", membertest.Packets: "udp", membertest.Streams: "tcp"}[c.kind]
	return fmt.Sprintf("%s%s%s (%s)", ids(c.from), arrow, to, what)
}

func ids(all []*machine) string {
	var names []string
	for _, m := range all {
		names = append(names, m.id)
	}
	return strings.Join(names, " ")
}

// sever adds a cut.
func (w *World) sever(c cut) {
	w.cuts = append(w.cuts, c)
	w.redraw()
	w.book.observe(2) // both sides go on
}

// mend takes a cut out again.
func (w *World) mend(c cut) {
	w.cuts = slices.DeleteFunc(w.cuts, func(other cut) bool { return other.String() == c.String() })
	w.redraw()
	w.book.observe(1)
}

// redraw makes the network what the cuts say.
func (w *World) redraw() {
	w.net.Heal()
	for _, c := range w.cuts {
		w.draw(c)
	}
	for _, m := range w.machines {
		if m.off {
			w.net.Isolate(membertest.Host(m.host))
		}
	}
}

func (w *World) draw(c cut) {
	to := hosts(c.to)
	if c.upstream {
		to = []netip.AddrPort{membertest.Host(w.out.host)}
	}
	for _, a := range hosts(c.from) {
		for _, b := range to {
			w.net.Cut(a, b, c.kind)
			if c.both {
				w.net.Cut(b, a, c.kind)
			}
		}
	}
}

func hosts(all []*machine) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, m := range all {
		addrs = append(addrs, membertest.Host(m.host))
	}
	return addrs
}

// freeze stops a process as SIGSTOP does.
func (w *World) freeze(m *machine) {
	m.frozen = true
	w.net.Freeze(m.host)
	w.book.observe(1)
}

// thaw lets it go on.
func (w *World) thaw(m *machine) {
	if !m.frozen {
		return
	}
	m.frozen = false
	w.net.Thaw(m.host)
	w.book.observe(1)
}

// restart starts a process again on a machine without one.
func (w *World) restart(m *machine) {
	if n := len(m.ended); n > 0 {
		<-m.ended[n-1].down
	}
	m.off = false
	w.redraw()
	w.run(m)
}

// move gives a machine without a process a new address.
func (w *World) move(m *machine) {
	b := m.host.As4()
	b[2] += 2 // 0 and 1 are those of machines that have not moved and of clients
	m.host = netip.AddrFrom4(b)
	w.byHost.Store(m.host, m.id)
	w.redraw()
}

// heal ends all faults, and starts what does not run.
func (w *World) heal() {
	w.setMood(-1, moodOK)
	w.cuts = nil
	for _, id := range w.order {
		m := w.machines[id]
		w.thaw(m)
		m.disk.noWrites.Store(false)
		m.disk.noReads.Store(false)
		if m.running == nil && !m.away {
			w.restart(m)
		}
	}
	w.redraw()
	w.book.observe(1)
}

// setMood changes how upstream treats module mod, all of them if it is -1.
func (w *World) setMood(mod int, m mood) {
	w.out.setMood(mod, m)
	w.book.observe(0)
}
