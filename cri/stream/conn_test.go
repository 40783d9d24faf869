package stream

import (
	"net"
	"testing"
	"time"
)

// vanishing is the connection of a client that goes while a deadline is being set.
type vanishing struct {
	net.Conn
	goes  func()
	limit time.Time // of writes
}

func (v *vanishing) SetWriteDeadline(t time.Time) error {
	if goes := v.goes; goes != nil {
		v.goes = nil
		goes()
	}
	v.limit = t
	return nil
}

// A client that has gone is not written to for ever, whatever the protocols set meanwhile.
func TestDeadlineOfWhoGoesMeanwhile(t *testing.T) {
	v := &vanishing{}
	c := &conn{Conn: v}
	v.goes = func() { c.hangUp(errGone) }
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if v.limit.IsZero() {
		t.Error("writes to a client that has gone have no limit")
	}
}
