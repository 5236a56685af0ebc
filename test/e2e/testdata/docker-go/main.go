package main

import (
	"net/http"

	"github.com/labstack/echo/v4"
)

func main() {
	e := echo.New()
	e.GET("/", func(c echo.Context) error { return c.HTML(http.StatusOK, "Hello, Docker!") })
	e.GET("/health", func(c echo.Context) error { return c.JSON(http.StatusOK, map[string]string{"Status": "OK"}) })
	e.Logger.Fatal(e.Start(":8080"))
}
