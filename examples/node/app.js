const express = require('express')

const app = express()

app.get('/', (req, res) => {
  res.type('text').send('Hello from Node.js and Express\n')
})

app.listen(process.env.PORT || 8080)
