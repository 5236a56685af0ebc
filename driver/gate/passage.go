package gate

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
)

// passage is one request that has a place in the app.
type passage struct {
	g       *Gate
	w       http.ResponseWriter
	r       *http.Request
	upgrade string      // the protocol to change to, "" for none
	end     time.Time   // of the request's time [RQ1]
	up      *upload     // nil without a body
	small   []byte      // all of the body, if it is small; else nil
	leave   func() bool // stops the watch over the visitor; false if it left before
	sent    *appConn    // that the request was sent over already; nil if it was not
}

// pass sends the request to the app and its answer back.
func (g *Gate) pass(w http.ResponseWriter, r *http.Request, upgrade string) {
	p := &passage{g: g, w: w, r: r, upgrade: upgrade, end: time.Now().Add(g.cfg.RequestTimeout)}
	p.up = p.upload()
	if upgrade == "" && g.wantsHTTP2(r) {
		p.overHTTP2()
		return
	}
	p.overHTTP1()
}

// goOn passes a request on of which a part is done.
func (g *Gate) goOn(w http.ResponseWriter, r *http.Request, b *begun) {
	v := g.visit(w)
	defer v.end()
	p := &passage{g: g, w: v, r: r, sent: b.conn, end: time.Now().Add(g.cfg.RequestTimeout)}
	p.overHTTP1()
}

// expects reports whether the visitor waits for the app's word before it sends the body.
func (p *passage) expects() bool {
	if _, fromEdge := p.r.Header[leapcell.HeaderInstance]; fromEdge {
		return len(p.r.Header[leapcell.HeaderExpect]) > 0
	}
	return len(p.r.Header["Expect"]) > 0 // the server refuses other values
}

// invite asks for the body of a request that is about to be passed on, if its sender waits
// only for a gate to take it. The server would ask when the body is first read, but not any
// more once the answer has begun: an app that answers first would never get the body.
func (p *passage) invite() {
	if p.up != nil && p.small == nil && p.r.ProtoMajor == 1 && len(p.r.Header["Expect"]) > 0 && !p.expects() {
		p.w.WriteHeader(http.StatusContinue)
	}
}

// isSmall reports whether the body is read before a connection is taken.
func (p *passage) isSmall() bool {
	return p.up != nil && p.r.ContentLength > 0 && p.r.ContentLength <= smallBody && !p.expects()
}

func (p *passage) overHTTP1() {
	if p.isSmall() {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		p.small = (*buf)[:p.r.ContentLength]
		if _, err := io.ReadFull(p.up, p.small); err != nil {
			p.refuse(p.explain(err))
			p.settle(refused)
			return
		}
	}
	c, err := p.sent, error(nil)
	if c == nil {
		c, err = p.g.upstream.get(p.r.Context())
	}
	if err != nil {
		p.refuse(p.explain(err))
		p.settle(refused)
		return
	}
	p.invite()
	c.until = instant{}
	_ = c.SetDeadline(p.end)
	// A visitor who leaves brings the deadline forward.
	p.leave = context.AfterFunc(p.r.Context(), c.expire)
	res, result := p.exchange(c)
	if p.leave() && result == whole && c.reusable(p, res) && c.SetDeadline(time.Time{}) == nil {
		p.g.upstream.put(c)
		return
	}
	_ = c.Close()
	p.settle(result)
}

// settle ends what may still go on with the visitor.
func (p *passage) settle(result outcome) {
	if p.up != nil {
		p.up.stop()
	}
	if result == broken {
		// Too late for a status. The visitor must not take what it has for the whole.
		panic(http.ErrAbortHandler)
	}
	if l, _ := p.r.Context().Value(laneKey{}).(*lane); l != nil && p.up != nil && !p.up.complete.Load() {
		l.answeredEarly(true)
	}
}

type outcome int

const (
	whole   outcome = iota // the app's answer was passed on to its end
	broken                 // it broke off after its head had left
	refused                // the gate gave the answer
	joined                 // the connection changed its protocol and is over
)

// exchange has the request answered over c.
func (p *passage) exchange(c *appConn) (*http.Response, outcome) {
	var res *http.Response
	var err error
	if p.sent == nil {
		err = c.send(p)
	}
	if err == nil {
		res, err = c.receive(p)
	}
	if err != nil {
		_ = c.Close() // before the answer: the body may still be on its way
		c.decide(false)
		p.refuse(p.explain(err))
		return nil, refused
	}
	if no := p.judge(res); no != nil {
		_ = c.Close()
		p.refuse(no)
		return nil, refused
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		p.join(c, res)
		return nil, joined
	}
	return res, p.answer(res)
}

// answer passes the app's answer on.
func (p *passage) answer(res *http.Response) outcome {
	h := p.w.Header()
	copyHeader(h, res.Header)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps the server from guessing
	}
	announceTrailers(h, res.Trailer)
	p.closeUnlessRead()
	p.w.WriteHeader(res.StatusCode)
	if p.stream(res) != nil {
		return broken
	}
	copyTrailers(h, res.Trailer)
	return whole
}

// closeUnlessRead makes this the last answer on an HTTP/1.1 connection of which the request
// has not been read to its end: what follows on it is not known to be a request. It also
// keeps the server from waiting for that end before it sends the answer.
func (p *passage) closeUnlessRead() {
	if p.up != nil && p.r.ProtoMajor == 1 && !p.up.complete.Load() {
		p.w.Header()["Connection"] = closing
	}
}

func (p *passage) refuse(r *refusal) {
	p.closeUnlessRead()
	p.g.refuse(p.w, r)
}

// stream copies the body as it comes. What is over the limit is noticed before the byte
// that crosses it has left. [RQ2, RQ4]
func (p *passage) stream(res *http.Response) error {
	if res.ContentLength == 0 || res.Body == http.NoBody {
		return nil
	}
	limit, flush := p.g.responseLimit(), res.ContentLength < 0
	pace := pacer{w: p.w, end: p.end}
	if p.g.serverless() {
		pace.idle = p.g.cfg.BodyIdle
	}
	if flush {
		pace.next()
		_ = pace.flush() // the head of an event stream may be all there is for long
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var sent int64
	for {
		n, err := res.Body.Read(*buf)
		if n > 0 {
			if sent += int64(n); limit > 0 && sent > limit {
				return errTooBig
			}
			if flush || sent > smallBody {
				pace.next()
			}
			if _, err := p.w.Write((*buf)[:n]); err != nil {
				return err
			}
			if flush && err == nil {
				if err := pace.flush(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// pacer sees to it that an answer does not stand still because its visitor takes nothing of
// it. The server lifts the deadline after the answer.
type pacer struct {
	w     http.ResponseWriter
	end   time.Time     // of the request's time
	idle  time.Duration // longest pause; 0: only the end counts
	armed time.Time
}

func (p *pacer) flush() error { return http.NewResponseController(p.w).Flush() }

// next is called before bytes are sent.
func (p *pacer) next() {
	now := time.Now()
	if !p.armed.IsZero() && (p.idle == 0 || now.Sub(p.armed) <= p.idle/16) {
		return
	}
	p.armed = now
	deadline := p.end
	if p.idle > 0 && now.Add(p.idle).Before(deadline) {
		deadline = now.Add(p.idle)
	}
	_ = http.NewResponseController(p.w).SetWriteDeadline(deadline)
}

// join connects the visitor's connection with the app's, both ways. It has no time limit.
// The app ends it: a visitor's end is passed on, and the app may still answer. [RQ4]
func (p *passage) join(c *appConn, res *http.Response) {
	visitor, buffered, err := http.NewResponseController(p.w).Hijack()
	if err != nil {
		p.refuse(badResponse)
		return
	}
	defer visitor.Close()
	// To the server a visitor who has no more to say is one who left.
	p.leave()
	_, _ = visitor.SetDeadline(time.Time{}), c.SetDeadline(time.Time{})
	var head strings.Builder
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	h := http.Header{leapcell.HeaderInstance: p.g.header}
	copyHeader(h, res.Header)
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{p.upgrade}
	_ = h.Write(&head) // into memory
	head.WriteString("\r\n")
	// Not through visitor, which counts what it takes: heads are free.
	_, _ = buffered.WriteString(head.String())
	if buffered.Flush() != nil {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, err := io.Copy(c.Conn, buffered.Reader)
		half, ok := c.Conn.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			_ = c.Close()
		}
	})
	_, _ = io.Copy(visitor, c.in)
	_, _ = visitor.Close(), c.Close()
	up.Wait()
}
