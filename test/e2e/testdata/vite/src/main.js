import './style.css'

const app = document.querySelector('#app')

function show() {
  app.innerHTML = `<h1>Vite</h1><p>This is ${location.pathname}</p><a href="/about">about</a>`
}

addEventListener('popstate', show)
app.addEventListener('click', (event) => {
  const link = event.target.closest('a')
  if (!link) return
  event.preventDefault()
  history.pushState(null, '', link.href)
  show()
})
show()
