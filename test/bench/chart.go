package main

import (
	"bytes"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chart is one picture: bars beside each other for each group, or lines over time.
type chart struct {
	title, x, y string
	groups      []string // of bars
	sets        []set    // a value for each group, or lines
	marks       []mark
}

// set is one colour of the chart: bars, one for each group, or the points of a line.
type set struct {
	name   string
	values []float64
	points plotter.XYs
}

// mark is a moment in a chart over time.
type mark struct {
	at   float64
	text string
}

var colours = []color.Color{
	color.RGBA{0x1f, 0x77, 0xb4, 0xff}, color.RGBA{0xff, 0x7f, 0x0e, 0xff}, color.RGBA{0xd6, 0x27, 0x28, 0xff},
	color.RGBA{0x2c, 0xa0, 0x2c, 0xff}, color.RGBA{0x94, 0x67, 0xbd, 0xff}, color.RGBA{0x7f, 0x7f, 0x7f, 0xff},
}

// orQuantiles is the chart, or the usual one.
func (c *chart) orQuantiles(r report) *chart {
	if c != nil {
		return c
	}
	return quantiles(r.Bench, r.Results)
}

// quantiles draws what most benchmarks have: p50, p90 and p99 of each figure.
func quantiles(title string, results []result) *chart {
	c := &chart{title: title, x: "milliseconds", sets: []set{{name: "p50"}, {name: "p90"}, {name: "p99"}}}
	for _, res := range results {
		for _, name := range order(res.Figures) {
			f, ok := res.Figures[name]
			if !ok {
				continue
			}
			c.groups = append(c.groups, res.Runtime+" "+name)
			for i, v := range []float64{f.P50, f.P90, f.P99} {
				c.sets[i].values = append(c.sets[i].values, v)
			}
		}
	}
	return c
}

// svg draws the chart.
func (c *chart) svg() ([]byte, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.Legend.Top = true
	width, height := 24*vg.Centimeter, 12*vg.Centimeter
	var err error
	if len(c.groups) > 0 {
		height = 3*vg.Centimeter + vg.Length(len(c.groups))*vg.Centimeter
		err = c.bars(p)
	} else {
		err = c.lines(p)
	}
	if err != nil {
		return nil, err
	}
	canvas := vgsvg.New(width, height)
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	_, err = canvas.WriteTo(&b)
	return b.Bytes(), err
}

func (c *chart) bars(p *plot.Plot) error {
	const thick = 7 // points
	p.Add(plotter.NewGrid())
	last := len(c.groups) - 1
	for i, s := range c.sets {
		values := make(plotter.Values, len(s.values))
		for j, v := range s.values {
			values[last-j] = v // the first is at the top
		}
		bars, err := plotter.NewBarChart(values, vg.Points(thick))
		if err != nil {
			return err
		}
		bars.Horizontal, bars.Color, bars.LineStyle.Width = true, colours[i%len(colours)], 0
		bars.Offset = vg.Points(thick * (float64(len(c.sets)-1)/2 - float64(i)))
		p.Add(bars)
		p.Legend.Add(s.name, bars)
	}
	names := make([]string, len(c.groups))
	for j, name := range c.groups {
		names[last-j] = name
	}
	p.NominalY(names...)
	p.X.Min = 0
	return nil
}

func (c *chart) lines(p *plot.Plot) error {
	p.Add(plotter.NewGrid())
	top := 0.0
	for i, s := range c.sets {
		if len(s.points) == 0 {
			continue
		}
		line, err := plotter.NewLine(s.points)
		if err != nil {
			return err
		}
		line.Color, line.Width = colours[i%len(colours)], vg.Points(1.2)
		p.Add(line)
		p.Legend.Add(s.name, line)
		for _, point := range s.points {
			top = max(top, point.Y)
		}
	}
	p.Y.Min = 0
	for i, m := range c.marks {
		line, err := plotter.NewLine(plotter.XYs{{X: m.at, Y: 0}, {X: m.at, Y: top}})
		if err != nil {
			return err
		}
		line.Color, line.Dashes = color.Gray{0xa0}, []vg.Length{vg.Points(2), vg.Points(2)}
		// Texts of neighbours at different heights, so that they can be read.
		labels, err := plotter.NewLabels(plotter.XYLabels{
			XYs: plotter.XYs{{X: m.at, Y: top * (0.97 - 0.06*float64(i%8))}}, Labels: []string{" " + m.text},
		})
		if err != nil {
			return err
		}
		p.Add(line, labels)
	}
	return nil
}
