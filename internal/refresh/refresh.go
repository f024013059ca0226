// Package refresh holds orders to ask upstream again: an operator's, or those of a push
// that a code host has told of.
//
// An order says that something may have changed upstream about a module, or about all
// modules below a path, and nothing else: no answer is in it. Whoever knows of it takes
// what he remembers from before it (lists, @latest, queries, absences) for out of date,
// and finds out anew when somebody asks. So an order costs upstream one question for each
// thing that is wanted, however many processes there are, and nothing for what nobody
// wants.
//
// Orders are numbered: of two for one module the one with the higher number is the later
// one. A process that asks another one on behalf of a module says which is the latest
// that it knows, so that nobody answers from before it, whatever way the order takes to
// him. Numbers begin with the time in milliseconds, so that those of a cluster that was
// started anew go on above; they are never taken for a time.
//
// An order is forgotten after Keep: nothing from before it counts as fresh any more then.
package refresh

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	// Keep is how long an order is kept: twice the time for which anything that changes
	// counts as fresh.
	Keep = 2 * time.Minute

	maxOrders = 16384
	maxPath   = 2048           // bytes
	ahead     = 24 * time.Hour // that a number may be before our clock
)

// Subject is what an order is about.
type Subject struct {
	Path  string // a module path, or the beginning of some, plain form
	Below bool   // all modules below it, too
}

// Order is one order.
type Order struct {
	Subject

	Number uint64
	Given  time.Time // local clock; only good for an age
}

var (
	// ErrFull says that there are too many orders already.
	ErrFull = errors.New("too many modules were to be refreshed within two minutes; try again later, or refresh what their paths have in common (PATH/...)")

	errPath   = errors.New("not the path of modules")
	errNumber = errors.New("the number of an order is out of bounds")
)

// Check tells what is wrong with a subject.
func (s Subject) Check() error {
	bad := len(s.Path) > maxPath || !utf8.ValidString(s.Path) ||
		strings.ContainsFunc(s.Path, func(r rune) bool { return r == '\\' || unicode.IsControl(r) || unicode.IsSpace(r) })
	for element := range strings.SplitSeq(s.Path, "/") {
		bad = bad || element == "" || element == "." || element == ".."
	}
	if bad {
		return fmt.Errorf("%.80q: %w", s.Path, errPath)
	}
	return nil
}

// Orders are those that a process knows of. Its methods may be called at any time from
// any goroutine.
type Orders struct {
	some atomic.Bool // there are any: most of the time there are none

	mu      sync.RWMutex
	all     map[Subject]known
	seq     uint64        // of what was learnt last
	highest uint64        // number ever seen
	tidied  time.Time     // when what is too old was last forgotten
	changed chan struct{} // closed and replaced when something was learnt
}

type known struct {
	Order

	seq uint64
}

// New returns Orders without any.
func New() *Orders { return &Orders{all: make(map[Subject]known), changed: make(chan struct{})} }

// Give makes new orders.
func (o *Orders) Give(subjects ...Subject) ([]Order, error) {
	now := time.Now()
	number := uint64(now.UnixMilli())<<16 | uint64(rand.N(1<<16))
	o.mu.RLock()
	number = max(number, o.highest+1)
	o.mu.RUnlock()
	orders := make([]Order, len(subjects))
	for i, s := range subjects {
		orders[i] = Order{s, number, now}
	}
	_, err := o.Take(orders...)
	return orders, err
}

// Take adds the orders that are later than those known, and returns how many these are.
// The error is the first of what is wrong with others.
func (o *Orders) Take(orders ...Order) (news int, err error) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tidy(now)
	for _, order := range orders {
		if bad := o.check(order, now); bad != nil {
			if err == nil {
				err = bad
			}
			continue
		}
		if now.Sub(order.Given) >= Keep || o.all[order.Subject].Number >= order.Number {
			continue
		}
		o.seq++
		o.highest = max(o.highest, order.Number)
		o.all[order.Subject] = known{order, o.seq}
		news++
	}
	if news > 0 {
		o.some.Store(true)
		close(o.changed)
		o.changed = make(chan struct{})
	}
	return news, err
}

// check holds an order to its limits. o.mu is held.
func (o *Orders) check(order Order, now time.Time) error {
	if order.Number == 0 || order.Number>>16 > uint64(now.Add(ahead).UnixMilli()) {
		return errNumber
	}
	if _, there := o.all[order.Subject]; !there && len(o.all) >= maxOrders {
		return ErrFull
	}
	return order.Check()
}

// tidy forgets what is too old. o.mu is held.
func (o *Orders) tidy(now time.Time) {
	if now.Sub(o.tidied) < Keep/8 && len(o.all) < maxOrders {
		return
	}
	o.tidied = now
	for s, k := range o.all {
		if now.Sub(k.Given) >= Keep {
			delete(o.all, s)
		}
	}
	o.some.Store(len(o.all) > 0)
}

// Learn takes over the number that somebody has named who asks on behalf of a module.
// What is no number of an order is nothing.
func (o *Orders) Learn(path string, number uint64) {
	if number == 0 || number <= o.Latest(path).Number {
		return
	}
	_, _ = o.Take(Order{Subject{Path: path}, number, time.Now()}) // who asks gets his answer all the same
}

// Latest returns the latest order about a module, the zero one where there is none.
func (o *Orders) Latest(path string) (latest Order) {
	if !o.some.Load() {
		return latest
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	see := func(s Subject) {
		if k, ok := o.all[s]; ok && k.Number > latest.Number && time.Since(k.Given) < Keep {
			latest = k.Order
		}
	}
	see(Subject{Path: path})
	for end := len(path); end > 0; end = strings.LastIndexByte(path[:end], '/') {
		see(Subject{path[:end], true})
	}
	return latest
}

// Changed returns a channel that is closed when an order is learnt. To miss nothing,
// call it before you look.
func (o *Orders) Changed() <-chan struct{} {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.changed
}

// News returns, as members tell it to each other, what was learnt after a call that has
// returned seq; all of it where seq is 0.
func (o *Orders) News(seq uint64) (all []*ringmodv1.RefreshOrder, now uint64) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, k := range o.all {
		if k.seq > seq && time.Since(k.Given) < Keep {
			all = append(all, Encode(k.Order))
		}
	}
	return all, o.seq
}

// Encode returns an order as members tell it to each other.
func Encode(o Order) *ringmodv1.RefreshOrder {
	return &ringmodv1.RefreshOrder{Path: o.Path, Below: o.Below, Number: o.Number, Age: durationpb.New(max(0, time.Since(o.Given)))}
}

// Decode reads what other members tell; Take looks whether it can be.
func Decode(all []*ringmodv1.RefreshOrder) []Order {
	orders := make([]Order, len(all))
	for i, p := range all {
		orders[i] = Order{Subject{p.GetPath(), p.GetBelow()}, p.GetNumber(), time.Now().Add(-max(0, p.GetAge().AsDuration()))}
	}
	return orders
}
