package wan

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// arrival is a packet that a link has delivered.
type arrival struct {
	id byte
	at time.Duration
}

// lane is a link whose other end is a list, in virtual time.
type lane struct {
	*link

	start    time.Time
	arrivals []arrival
}

func newLane(t *testing.T, path Path) *lane {
	t.Helper()
	l := &lane{start: time.Now()}
	l.link = newLink(1, func(packet []byte) {
		l.arrivals = append(l.arrivals, arrival{packet[len(packet)-1], time.Since(l.start)})
	})
	l.set(path)
	ctx, stop := context.WithCancel(t.Context())
	running := make(chan struct{})
	go func() { defer close(running); l.run(ctx) }()
	t.Cleanup(func() { stop(); <-running })
	return l
}

// packet makes an IPv4 packet of size bytes that ends with id.
func packet(protocol, id byte, from, to uint16, size int) []byte {
	p := make([]byte, size)
	p[0], p[protocolAt] = 0x45, protocol
	binary.BigEndian.PutUint16(p[minHeader:], from)
	binary.BigEndian.PutUint16(p[minHeader+2:], to)
	p[size-1] = id
	return p
}

func (l *lane) sendTCP(id byte, size int) { l.send(packet(protocolTCP, id, 40000, 8082, size)) }

// pass lets d pass, and all happen that does until then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (l *lane) want(t *testing.T, want ...arrival) {
	t.Helper()
	pass(time.Minute)
	if !slices.Equal(l.arrivals, want) {
		t.Errorf("arrivals %v, want %v", l.arrivals, want)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(t, Path{Delay: 80 * time.Millisecond})
		l.sendTCP(1, 100)
		pass(30 * time.Millisecond)
		l.sendTCP(2, 1500)
		l.sendTCP(3, 40)
		l.want(t, arrival{1, 80 * time.Millisecond}, arrival{2, 110 * time.Millisecond}, arrival{3, 110 * time.Millisecond})
	})
}

func TestOrderStaysWhenTheDelayFalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(t, Path{Delay: time.Second})
		l.sendTCP(1, 100)
		l.set(Path{})
		l.sendTCP(2, 100)
		l.want(t, arrival{1, time.Second}, arrival{2, time.Second})
	})
}

func TestRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(t, Path{Rate: 10_000, Delay: time.Second})
		l.sendTCP(1, 1000)
		l.sendTCP(2, 500)
		pass(time.Minute) // what was not used is not saved up
		l.sendTCP(3, 1000)
		l.want(t, arrival{1, 1100 * time.Millisecond}, arrival{2, 1150 * time.Millisecond}, arrival{3, 61100 * time.Millisecond})
	})
}

func TestBacklogIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(t, Path{Rate: 10_000})
		for id := range byte(10) {
			l.sendTCP(id, 1000)
		}
		l.want(t, arrival{0, 100 * time.Millisecond}, arrival{1, 200 * time.Millisecond}, arrival{2, 300 * time.Millisecond})
		if got := l.snapshot().Lost; got != 7 {
			t.Errorf("lost %d packets, want the 7 that were more than 250 ms late", got)
		}
	})
}

func TestLossIsTheSameForTheSameSeed(t *testing.T) {
	t.Parallel()
	const packets = 10_000
	run := func() (arrived []byte) {
		synctest.Test(t, func(t *testing.T) {
			l := newLane(t, Path{Loss: 0.1})
			for i := range packets {
				l.sendTCP(byte(i), 100)
			}
			pass(time.Second)
			for _, a := range l.arrivals {
				arrived = append(arrived, a.id)
			}
			s := l.snapshot()
			if s.Packets != int64(len(arrived)) || s.Packets+s.Lost != packets || s.Bytes != 100*s.Packets {
				t.Errorf("counted %+v, want what was sent, %d, and %d arrivals", s, packets, len(arrived))
			}
		})
		return arrived
	}
	first := run()
	if lost := packets - len(first); lost < packets/20 || lost > packets/5 {
		t.Errorf("lost %d of %d packets, want about a tenth", lost, packets)
	}
	if !bytes.Equal(first, run()) {
		t.Error("another run with the same seed lost other packets")
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		cut  Cut
		want []byte
	}{
		{"TCP", TCP, []byte{2, 3}},
		{"UDP", UDP, []byte{1, 3}},
		{"everything", Everything, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLane(t, Path{Delay: time.Second})
				all := func() {
					l.sendTCP(1, 100)
					l.send(packet(protocolUDP, 2, 7, 7, 100))
					l.send(packet(1, 3, 0, 0, 100))
				}
				all() // is on its way when the cut comes
				l.set(Path{Cut: test.cut})
				all()
				pass(time.Minute)
				var got []byte
				for _, a := range l.arrivals {
					got = append(got, a.id)
				}
				if want := slices.Repeat(test.want, 2); !bytes.Equal(got, want) {
					t.Errorf("arrived %v, want %v", got, want)
				}
				l.arrivals = nil
				l.set(Path{})
				all()
				l.want(t, arrival{1, time.Minute}, arrival{2, time.Minute}, arrival{3, time.Minute})
			})
		})
	}
}

func TestPortsAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(t, Path{})
		l.send(packet(protocolTCP, 1, 40000, 8082, 100))
		l.send(packet(protocolTCP, 1, 8082, 40001, 1000))
		l.send(packet(protocolUDP, 1, 8082, 8082, 500))
		l.send([]byte{0x4f, 0, 0, 0, 0, 0, 0, 0, 0, protocolTCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // header beyond its end
		pass(time.Second)
		s := l.snapshot()
		if got, want := s.Ports[8082], int64(1100); got != want || len(s.Ports) != 3 {
			t.Errorf("port 8082: %d bytes, want %d; ports %v", got, want, s.Ports)
		}
	})
}
