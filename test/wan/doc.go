// Package wan puts processes of a test into places that are far apart: each
// [Site] is a network namespace of its own, and between each two of them lies a
// link in user space with a delay, a loss and a rate for each direction, which
// counts what passes and can be cut. The kernel needs namespaces and TUN devices
// and nothing for traffic control.
//
// A site has an interface "wan0" with one IPv4 address, 10.91.0.<number>, and a
// loopback that is up; what its processes say to their own address stays in the
// kernel. All else is read from the TUN device by the test's process and, when
// its time has come, written to the device of the other site. There is no way from a
// site to the machine's network or back: a test dials, listens and starts
// processes inside through the site. Namespaces have no name: they are gone
// when the test's process and those that it has started have ended, however that
// came about.
package wan
